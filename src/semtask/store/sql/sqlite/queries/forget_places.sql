-- Whose attempts folder is nowhere: no process is looked for by these claims, as it would be that of another home.
UPDATE jobs SET claim = json_set(claim, '$.attempts_id', '') WHERE state = State.RUNNING AND typeof(claim) = 'text';
UPDATE claims SET facts = json_set(facts, '$.attempts_id', '')

