INSERT INTO claims (facts) VALUES (:facts) RETURNING id
