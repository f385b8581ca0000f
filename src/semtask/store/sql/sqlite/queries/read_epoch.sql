-- In each write transaction: a daemon that finds another epoch has been replaced and must not write.
SELECT daemon_epoch FROM meta WHERE id = 1
