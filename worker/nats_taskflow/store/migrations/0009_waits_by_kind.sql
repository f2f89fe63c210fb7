-- Schema 9. How many flows wait for what: a counter for each kind of wait, beside those by status.

-- A wait that cannot be read is counted by none.
INSERT INTO counters (name, value)
SELECT 'waits.' || kind, count(*)
FROM (SELECT CASE WHEN json_valid(wait_json) THEN json_extract(wait_json, '$.kind') END AS kind FROM flows WHERE wait_json IS NOT NULL)
WHERE kind IS NOT NULL GROUP BY kind;
