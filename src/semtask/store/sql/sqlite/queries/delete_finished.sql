-- Their attempts go with them. :seqs is a JSON array.
DELETE FROM jobs WHERE seq IN (SELECT value FROM json_each(:seqs)) AND finished_at IS NOT NULL
