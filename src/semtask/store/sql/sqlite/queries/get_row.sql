SELECT jobs.*, (SELECT facts FROM claims WHERE id = jobs.claim) AS facts FROM jobs WHERE seq = :seq
