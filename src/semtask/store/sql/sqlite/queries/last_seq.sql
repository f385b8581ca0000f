SELECT max(seq) FROM jobs
