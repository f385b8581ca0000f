-- How many jobs a stop request named, and the state of one of them. {selector} as in cancel_waiting.sql.
SELECT count(*), min(state) FROM jobs WHERE {selector}
