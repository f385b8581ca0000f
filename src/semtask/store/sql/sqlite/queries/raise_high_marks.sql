-- A restored database goes on above what the replaced one had given out.
UPDATE meta
SET daemon_epoch = max(daemon_epoch, :daemon_epoch), next_seq = max(next_seq, :next_seq)
WHERE id = 1
