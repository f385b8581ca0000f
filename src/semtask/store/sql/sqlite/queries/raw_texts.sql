-- {columns} are text columns as bytes.
SELECT {columns} FROM jobs WHERE seq = :seq
