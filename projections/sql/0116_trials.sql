-- Trials: calls that were not carried out are no effects, and what an evaluation or a shadow may spend is a budget of its tenant.

SET ROLE crewlog_projector;

ALTER TABLE rm.tool_calls ADD stub text COLLATE "C";                -- stubbed, recorded, missing: how it was answered instead

CREATE OR REPLACE VIEW crewlog.tool_calls AS
SELECT c.run_id, c.task_id, c.call_id, c.turn, c.tool, c.tool_version, c.effect, c.status, c.starts, c.idempotency_key, c.approval_id,
       c.trust, c.latency_ms,
       to_timestamp(c.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(c.started_us / 1e6::float8) AS started_at,
       to_timestamp(c.finished_us / 1e6::float8) AS finished_at,
       (SELECT a.value -> 'arguments' FROM json_array_elements(q.data -> 'tool_calls') a WHERE a.value ->> 'call_id' = c.call_id) AS arguments,
       o.data -> 'result' AS result, o.data -> 'artifacts' AS artifacts, c.outcome_position AS position,
       c.fingerprint, c.reused, c.stub
  FROM rm.tool_calls c
  LEFT JOIN es.events q ON q.position = c.requested_position
  LEFT JOIN es.events o ON o.position = c.outcome_position;

CREATE OR REPLACE VIEW crewlog.effects AS
SELECT c.run_id, c.task_id, t.key, t.kind, c.call_id, c.tool, c.effect, c.status, c.starts, c.idempotency_key, c.approval_id,
       to_timestamp(c.started_us / 1e6::float8) AS started_at,
       to_timestamp(c.finished_us / 1e6::float8) AS finished_at,
       r.tenant, c.compensation ->> 'resource' AS resource, c.compensation,
       u.run_id IS NULL AND (c.status IN ('unknown', 'interrupted', 'abandoned') AND c.effect <> 'idempotent'
                             OR c.status IN ('ok', 'unknown', 'interrupted', 'abandoned') AND c.compensation IS NOT NULL) AS is_open,
       u.run_id AS undone_in, to_timestamp(u.finished_us / 1e6::float8) AS undone_at
  FROM rm.tool_calls c
  LEFT JOIN rm.tasks t ON t.task_id = c.task_id
  LEFT JOIN rm.runs r ON r.run_id = c.run_id
  LEFT JOIN LATERAL (SELECT b.run_id, b.finished_us FROM rm.tool_calls b
                      WHERE b.fingerprint = c.compensation ->> 'fingerprint' AND b.status = 'ok'
                        AND b.outcome_position > coalesce(c.outcome_position, c.requested_position)
                      ORDER BY b.outcome_position LIMIT 1) u ON true
 WHERE c.effect <> 'read' AND c.stub IS NULL;

CREATE OR REPLACE VIEW crewlog.budgets AS
SELECT b.scope, n.kind, coalesce(n.tenant, r.tenant) AS tenant, r.run_id, n.day,
       b.soft AS soft_micro_usd, b.hard AS hard_micro_usd, b.spent AS spent_micro_usd, b.reserved AS reserved_micro_usd,
       CASE WHEN n.day IS NULL THEN r.finished_us IS NULL ELSE n.day >= (now() AT TIME ZONE 'UTC')::date END AS is_open,
       (SELECT count(*) FROM rm.runs h WHERE h.hold IS NOT NULL AND h.hold ->> 'scope' = b.scope) AS runs_held,
       to_timestamp(c.occurred_us / 1e6::float8) AS changed_at, c.data ->> 'actor' AS changed_by, c.data ->> 'reason' AS reason
  FROM es.budgets b
  CROSS JOIN LATERAL (SELECT split_part(b.scope, '/', 1) AS first, string_to_array(b.scope, '/') AS parts) p
  CROSS JOIN LATERAL (
    SELECT CASE WHEN p.first IN ('kind', 'user', 'tenant') THEN p.first || '/day' ELSE p.first END AS kind,
           CASE WHEN p.first IN ('kind', 'user', 'tenant', 'trial') THEN p.parts[2] END AS tenant,
           CASE WHEN p.first = 'tenant' THEN p.parts[3]::date WHEN p.first IN ('kind', 'user') THEN p.parts[4]::date END AS day,
           CASE WHEN p.first IN ('run', 'tree') THEN substring(b.scope FROM '/([0-9a-f-]{36})$')::uuid END AS id) n
  LEFT JOIN rm.tasks t ON n.id = t.task_id AND p.first = 'tree'
  LEFT JOIN rm.runs r ON r.run_id = coalesce(t.run_id, n.id)
  LEFT JOIN LATERAL (SELECT e.occurred_us, e.data FROM es.events e WHERE e.stream_id = 'budget/' || b.scope ORDER BY e.version DESC LIMIT 1) c ON true;

RESET ROLE;
