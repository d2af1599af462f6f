-- Budgets in the views: what they allow and what is spent, runs that one holds with what they have so far, soft limits that runs have passed.

GRANT SELECT ON es.budgets TO crewlog_projector;                    -- its views show the ledger itself, too

SET ROLE crewlog_projector;

ALTER TABLE rm.runs
  ADD COLUMN hold          jsonb,                                   -- scope, limit, used, needed, since and until when; NULL unless held
  ADD COLUMN hold_position bigint,                                  -- RunHeld: it has the partial result
  ADD COLUMN warnings      jsonb NOT NULL DEFAULT '[]';             -- scopes over their soft limit

CREATE INDEX ON rm.runs ((hold ->> 'scope')) WHERE hold IS NOT NULL;

CREATE OR REPLACE VIEW crewlog.runs AS
SELECT r.run_id, r.tenant, r.user_name, r.type, r.goal, r.status, r.plan_origin,
       to_timestamp(r.submitted_us / 1e6::float8) AS submitted_at,
       to_timestamp(r.finished_us / 1e6::float8) AS finished_at,
       s.tasks_done, s.tasks_total, s.agents, s.turns, s.tool_calls, s.input_tokens, s.output_tokens,
       s.cost_micro_usd, s.unpriced_calls, s.simulated,
       (SELECT count(*) FROM rm.approvals a WHERE a.run_id = r.run_id AND a.decided_us IS NULL) AS approvals_pending,
       r.flags, r.artifacts,
       coalesce(e.data -> 'answer', e.data -> 'partial') ->> 'inline' AS answer,
       coalesce(e.data -> 'answer', e.data -> 'partial') ->> 'ref' AS answer_ref,
       e.data -> 'citations' AS citations, r.error_code, r.error,
       r.hold, r.warnings
  FROM rm.runs r
  LEFT JOIN es.events e ON e.position = coalesce(r.end_position, r.hold_position)
  CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE t.status = 'completed') AS tasks_done,
           count(*) FILTER (WHERE t.status NOT IN ('revised', 'skipped')) AS tasks_total,
           count(DISTINCT t.kind) FILTER (WHERE t.started_us IS NOT NULL) AS agents,
           coalesce(sum(t.turns), 0)::bigint AS turns, coalesce(sum(t.tool_calls), 0)::bigint AS tool_calls,
           coalesce(sum(t.input_tokens), 0)::bigint AS input_tokens, coalesce(sum(t.output_tokens), 0)::bigint AS output_tokens,
           coalesce(sum(t.cost_micro_usd), 0)::bigint AS cost_micro_usd, coalesce(sum(t.unpriced_calls), 0)::bigint AS unpriced_calls,
           coalesce(bool_or(t.simulated), false) AS simulated
      FROM rm.tasks t WHERE t.run_id = r.run_id) s;

-- The ledger as it is now, not a fold: the gate books in the transaction of each append.
CREATE VIEW crewlog.budgets AS
SELECT b.scope, n.kind, coalesce(n.tenant, r.tenant) AS tenant, r.run_id, n.day,
       b.soft AS soft_micro_usd, b.hard AS hard_micro_usd, b.spent AS spent_micro_usd, b.reserved AS reserved_micro_usd,
       CASE WHEN n.day IS NULL THEN r.finished_us IS NULL ELSE n.day >= (now() AT TIME ZONE 'UTC')::date END AS is_open,
       (SELECT count(*) FROM rm.runs h WHERE h.hold IS NOT NULL AND h.hold ->> 'scope' = b.scope) AS runs_held,
       to_timestamp(c.occurred_us / 1e6::float8) AS changed_at, c.data ->> 'actor' AS changed_by, c.data ->> 'reason' AS reason
  FROM es.budgets b
  CROSS JOIN LATERAL (SELECT split_part(b.scope, '/', 1) AS first, string_to_array(b.scope, '/') AS parts) p
  CROSS JOIN LATERAL (
    SELECT CASE WHEN p.first IN ('kind', 'user', 'tenant') THEN p.first || '/day' ELSE p.first END AS kind,
           CASE WHEN p.first IN ('kind', 'user', 'tenant') THEN p.parts[2] END AS tenant,
           CASE WHEN p.first = 'tenant' THEN p.parts[3]::date WHEN p.first IN ('kind', 'user') THEN p.parts[4]::date END AS day,
           CASE WHEN p.first IN ('run', 'tree') THEN substring(b.scope FROM '/([0-9a-f-]{36})$')::uuid END AS id) n
  LEFT JOIN rm.tasks t ON n.id = t.task_id AND p.first = 'tree'
  LEFT JOIN rm.runs r ON r.run_id = coalesce(t.run_id, n.id)
  LEFT JOIN LATERAL (SELECT e.occurred_us, e.data FROM es.events e WHERE e.stream_id = 'budget/' || b.scope ORDER BY e.version DESC LIMIT 1) c ON true;

CREATE VIEW crewlog.budget_tasks AS
SELECT s.run_id, substr(s.stream_id, 6)::uuid AS task_id, b.scope
  FROM es.streams s CROSS JOIN LATERAL unnest(s.scopes) u (scope_id) JOIN es.budgets b ON b.scope_id = u.scope_id
 WHERE starts_with(s.stream_id, 'task/');

GRANT SELECT ON crewlog.budgets, crewlog.budget_tasks TO crewlog_operator, crewlog_orchestrator;

RESET ROLE;
