UPDATE meta SET daemon_epoch = daemon_epoch + 1 WHERE id = 1 RETURNING daemon_epoch
