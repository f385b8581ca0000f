-- What is never given out twice.
SELECT daemon_epoch, next_seq FROM meta WHERE id = 1
