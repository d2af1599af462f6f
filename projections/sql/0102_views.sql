-- The public read interface. Column names and meanings are stable: later versions only add columns. Described in docs/views.md.
-- The projector owns the views, so whoever may select from a view needs no rights on the tables or on the log.

SET ROLE crewlog_projector;

CREATE VIEW crewlog.tasks AS
SELECT t.task_id, t.run_id, t.key, t.kind, t.revision, t.objective, t.depends_on, t.status, t.waiting_reason,
       t.worker, t.provider, t.model, t.simulated, t.attempt, t.turns, t.model_calls, t.tool_calls,
       t.input_tokens, t.output_tokens, t.cached_tokens, t.cost_micro_usd, t.unpriced_calls,
       to_timestamp(t.planned_us / 1e6::float8) AS planned_at,
       to_timestamp(t.dispatched_us / 1e6::float8) AS dispatched_at,
       to_timestamp(t.started_us / 1e6::float8) AS started_at,
       to_timestamp(t.finished_us / 1e6::float8) AS finished_at,
       to_timestamp(t.deadline_us / 1e6::float8) AS deadline_at,
       t.verdict, t.issues, t.artifacts, o.data -> 'outcome' AS outcome, t.error_code, t.error
  FROM rm.tasks t LEFT JOIN es.events o ON o.position = t.outcome_position;

CREATE VIEW crewlog.runs AS
SELECT r.run_id, r.tenant, r.user_name, r.type, r.goal, r.status, r.plan_origin,
       to_timestamp(r.submitted_us / 1e6::float8) AS submitted_at,
       to_timestamp(r.finished_us / 1e6::float8) AS finished_at,
       s.tasks_done, s.tasks_total, s.agents, s.turns, s.tool_calls, s.input_tokens, s.output_tokens,
       s.cost_micro_usd, s.unpriced_calls, s.simulated,
       (SELECT count(*) FROM rm.approvals a WHERE a.run_id = r.run_id AND a.decided_us IS NULL) AS approvals_pending,
       r.flags, r.artifacts,
       coalesce(e.data -> 'answer', e.data -> 'partial') ->> 'inline' AS answer,
       coalesce(e.data -> 'answer', e.data -> 'partial') ->> 'ref' AS answer_ref,
       e.data -> 'citations' AS citations, r.error_code, r.error
  FROM rm.runs r
  LEFT JOIN es.events e ON e.position = r.end_position
  CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE t.status = 'completed') AS tasks_done,
           count(*) FILTER (WHERE t.status NOT IN ('revised', 'skipped')) AS tasks_total,
           count(DISTINCT t.kind) FILTER (WHERE t.started_us IS NOT NULL) AS agents,
           coalesce(sum(t.turns), 0)::bigint AS turns, coalesce(sum(t.tool_calls), 0)::bigint AS tool_calls,
           coalesce(sum(t.input_tokens), 0)::bigint AS input_tokens, coalesce(sum(t.output_tokens), 0)::bigint AS output_tokens,
           coalesce(sum(t.cost_micro_usd), 0)::bigint AS cost_micro_usd, coalesce(sum(t.unpriced_calls), 0)::bigint AS unpriced_calls,
           coalesce(bool_or(t.simulated), false) AS simulated
      FROM rm.tasks t WHERE t.run_id = r.run_id) s;

CREATE VIEW crewlog.model_calls AS
SELECT m.run_id, m.task_id, m.number, m.call_id, m.turn, m.provider, m.model, m.status, m.stop, m.simulated,
       m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_write_tokens, m.reasoning_tokens,
       m.cost_micro_usd, m.price_source, m.latency_ms,
       to_timestamp(m.started_us / 1e6::float8) AS started_at,
       to_timestamp(m.finished_us / 1e6::float8) AS finished_at,
       m.error_code, m.error, m.outcome_position AS position
  FROM rm.model_calls m;

CREATE VIEW crewlog.tool_calls AS
SELECT c.run_id, c.task_id, c.call_id, c.turn, c.tool, c.tool_version, c.effect, c.status, c.starts, c.idempotency_key, c.approval_id,
       c.trust, c.latency_ms,
       to_timestamp(c.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(c.started_us / 1e6::float8) AS started_at,
       to_timestamp(c.finished_us / 1e6::float8) AS finished_at,
       (SELECT a.value -> 'arguments' FROM json_array_elements(q.data -> 'tool_calls') a WHERE a.value ->> 'call_id' = c.call_id) AS arguments,
       o.data -> 'result' AS result, o.data -> 'artifacts' AS artifacts, c.outcome_position AS position
  FROM rm.tool_calls c
  LEFT JOIN es.events q ON q.position = c.requested_position
  LEFT JOIN es.events o ON o.position = c.outcome_position;

CREATE VIEW crewlog.effects AS
SELECT c.run_id, c.task_id, t.key, t.kind, c.call_id, c.tool, c.effect, c.status, c.starts, c.idempotency_key, c.approval_id,
       to_timestamp(c.started_us / 1e6::float8) AS started_at,
       to_timestamp(c.finished_us / 1e6::float8) AS finished_at
  FROM rm.tool_calls c LEFT JOIN rm.tasks t ON t.task_id = c.task_id
 WHERE c.effect <> 'read';

CREATE VIEW crewlog.costs AS
SELECT r.tenant, r.user_name, (to_timestamp(m.started_us / 1e6::float8) AT TIME ZONE 'UTC')::date AS day,
       m.run_id, m.task_id, t.key, t.kind, m.provider, m.model, bool_or(m.simulated) AS simulated,
       count(*) AS calls, sum(m.input_tokens)::bigint AS input_tokens, sum(m.output_tokens)::bigint AS output_tokens,
       sum(m.cache_read_tokens)::bigint AS cached_tokens, coalesce(sum(m.cost_micro_usd), 0)::bigint AS cost_micro_usd,
       count(*) FILTER (WHERE m.cost_micro_usd IS NULL AND m.status IN ('ok', 'failed')) AS unpriced_calls
  FROM rm.model_calls m
  JOIN rm.runs r ON r.run_id = m.run_id
  JOIN rm.tasks t ON t.task_id = m.task_id
 GROUP BY r.tenant, r.user_name, day, m.run_id, m.task_id, t.key, t.kind, m.provider, m.model;

CREATE VIEW crewlog.approvals AS
SELECT a.approval_id, a.run_id, a.task_id, t.key, t.kind, a.call_id, a.tool, q.data -> 'arguments' AS arguments, a.reason, a.digest, a.status,
       to_timestamp(a.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(a.expires_us / 1e6::float8) AS expires_at,
       to_timestamp(a.decided_us / 1e6::float8) AS decided_at,
       a.actor, a.note
  FROM rm.approvals a
  LEFT JOIN rm.tasks t ON t.task_id = a.task_id
  LEFT JOIN es.events q ON q.position = a.requested_position;

CREATE VIEW crewlog.artifacts AS
SELECT t.run_id, t.task_id, t.key, t.kind, a.name, a.hash, a.size, a.media_type
  FROM rm.tasks t CROSS JOIN LATERAL jsonb_to_recordset(t.artifacts) a (name text, hash text, size bigint, media_type text);

CREATE VIEW crewlog.timeline AS
SELECT t.run_id, t.task_id, t.key, 'task' AS span, t.kind AS name, t.status,
       to_timestamp(coalesce(t.started_us, t.dispatched_us) / 1e6::float8) AS started_at, to_timestamp(t.finished_us / 1e6::float8) AS finished_at
  FROM rm.tasks t WHERE t.dispatched_us IS NOT NULL
UNION ALL
SELECT m.run_id, m.task_id, t.key, 'turn', m.provider || '/' || m.model, m.status,
       to_timestamp(m.started_us / 1e6::float8), to_timestamp(m.finished_us / 1e6::float8)
  FROM rm.model_calls m JOIN rm.tasks t ON t.task_id = m.task_id
UNION ALL
SELECT c.run_id, c.task_id, t.key, 'tool', c.tool, c.status,
       to_timestamp(c.started_us / 1e6::float8), to_timestamp(c.finished_us / 1e6::float8)
  FROM rm.tool_calls c JOIN rm.tasks t ON t.task_id = c.task_id WHERE c.started_us IS NOT NULL
UNION ALL
SELECT a.run_id, a.task_id, t.key, 'approval', a.tool, a.status,
       to_timestamp(a.requested_us / 1e6::float8), to_timestamp(a.decided_us / 1e6::float8)
  FROM rm.approvals a JOIN rm.tasks t ON t.task_id = a.task_id;

CREATE VIEW crewlog.agents AS
SELECT g.kind, g.worker, g.description, g.version, g.slots, g.model, g.simulated, g.tools, g.unavailable,
       to_timestamp(g.started_us / 1e6::float8) AS started_at,
       to_timestamp(g.stopped_us / 1e6::float8) AS stopped_at
  FROM rm.agents g;

CREATE VIEW crewlog.events AS
SELECT e.position, to_timestamp(e.occurred_us / 1e6::float8) AS occurred_at, e.stream_id AS stream, e.version, e.type, e.schema_version,
       s.run_id, CASE WHEN starts_with(e.stream_id, 'task/') THEN substr(e.stream_id, 6)::uuid END AS task_id,
       e.actor, e.writer, e.event_id, e.causation_id, e.data
  FROM es.events e JOIN es.streams s ON s.stream_id = e.stream_id;

CREATE VIEW crewlog.documents AS
SELECT d.tenant, d.content, d.name, d.title, d.media_type, d.size, d.lines, d.library, d.text_hash, d.position
  FROM rm.documents d;

CREATE VIEW crewlog.checkpoints AS
SELECT c.name, c.position, c.version FROM rm.checkpoints c;

CREATE VIEW crewlog.problems AS
SELECT p.projection, p.position, 1::bigint AS events, p.stream, p.type, p.error FROM rm.problems p
UNION ALL
SELECT 'unreadable', u.first_position, u.events, NULL, u.type, u.error FROM rm.unreadable u;

RESET ROLE;
