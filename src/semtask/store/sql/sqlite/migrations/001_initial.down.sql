DROP VIEW jobs_readable;
DROP TABLE meta;
DROP TABLE counters;
DROP TABLE subjects;
DROP TABLE queues;
DROP TABLE attempts;
DROP TABLE claims;
DROP TABLE jobs;
