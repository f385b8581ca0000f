-- How many jobs a stop request named, and the state of one of them. {selector} as in waiting_of.sql.
SELECT count(*), min(state) FROM jobs WHERE {selector}
