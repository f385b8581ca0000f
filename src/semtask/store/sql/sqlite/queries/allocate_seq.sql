-- In the transaction of the inserts, so that a number once seen is never given out again.
UPDATE meta SET next_seq = next_seq + :count WHERE id = 1 RETURNING next_seq - :count
