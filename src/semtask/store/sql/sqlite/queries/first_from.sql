SELECT seq, created_at FROM jobs WHERE seq >= :seq ORDER BY seq LIMIT 1
