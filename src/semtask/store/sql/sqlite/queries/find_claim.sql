SELECT id FROM claims WHERE facts = :facts
