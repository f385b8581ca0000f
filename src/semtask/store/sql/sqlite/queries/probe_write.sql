-- Changes nothing, but has to write a page: whether the disk takes writes again.
UPDATE meta SET next_seq = next_seq WHERE id = 1
