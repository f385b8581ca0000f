-- Whether the disk takes writes again. It has to change something: SQLite writes no page that stays the same.
-- A number of jobs.seq is left out by it, which harms nobody.
UPDATE meta SET next_seq = next_seq + 1 WHERE id = 1
