-- Where a run comes from: who handed it in, and for forks and trials the run it was made after.

SET ROLE crewlog_projector;

ALTER TABLE rm.runs ADD parent_run_id uuid;                         -- a fork's parent, or the run that a trial repeats
CREATE INDEX ON rm.runs (parent_run_id) WHERE parent_run_id IS NOT NULL;

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
       r.hold, r.warnings, r.source, r.parent_run_id
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

RESET ROLE;
