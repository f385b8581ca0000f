-- {column} is one of the text columns.
UPDATE jobs SET {column} = :text WHERE seq = :seq
