-- The public read interface. Column names and meanings are stable: later versions only add columns, at the end. Described in docs/views.md.
-- The projector owns the views, so whoever may select from a view needs no rights on the tables or on the log.

SET ROLE crewlog_projector;

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

-- part: what the money was spent for. What has no outcome is open; what was charged with its upper bound, because nobody knows the bill, is
-- the worst case; everything else goes by its status.
CREATE VIEW crewlog.model_calls AS
SELECT m.run_id, m.task_id, m.number, m.call_id, m.turn, m.provider, m.model, m.status, m.stop, m.simulated,
       m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_write_tokens, m.reasoning_tokens,
       m.cost_micro_usd, m.price_source, m.latency_ms,
       to_timestamp(m.started_us / 1e6::float8) AS started_at,
       to_timestamp(m.finished_us / 1e6::float8) AS finished_at,
       m.error_code, m.error, m.outcome_position AS position,
       m.uncached_micro_usd, m.wire, m.request_id, r.tenant, r.user_name, t.key, t.kind,
       (to_timestamp(m.started_us / 1e6::float8) AT TIME ZONE 'UTC')::date AS day,
       CASE WHEN m.status IN ('running', 'abandoned') THEN 'open' WHEN m.price_source = 'worst case' THEN 'worst_case' ELSE m.status END AS part
  FROM rm.model_calls m
  LEFT JOIN rm.runs r ON r.run_id = m.run_id
  LEFT JOIN rm.tasks t ON t.task_id = m.task_id;

CREATE VIEW crewlog.tool_calls AS
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

-- Turns of tasks: what was asked and called between two looks of a model at its task.
CREATE VIEW crewlog.turns AS
SELECT m.run_id, m.task_id, m.key, m.kind, m.turn, m.provider, m.model, m.model_calls, c.tool_calls, c.tools, m.input_tokens, m.output_tokens,
       m.cost_micro_usd, m.unpriced_calls, m.started_at, greatest(m.finished_at, c.finished_at) AS finished_at
  FROM (SELECT run_id, task_id, key, kind, turn,
               (array_agg(provider ORDER BY number DESC))[1] AS provider, (array_agg(model ORDER BY number DESC))[1] AS model,
               count(*) AS model_calls,
               coalesce(sum(input_tokens), 0)::bigint AS input_tokens, coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
               coalesce(sum(cost_micro_usd), 0)::bigint AS cost_micro_usd,
               count(*) FILTER (WHERE part = 'ok' AND cost_micro_usd IS NULL) AS unpriced_calls,
               min(started_at) AS started_at, max(finished_at) AS finished_at
          FROM crewlog.model_calls
         GROUP BY run_id, task_id, key, kind, turn) m
 CROSS JOIN LATERAL (SELECT count(*) AS tool_calls, coalesce(array_agg(t.tool ORDER BY t.requested_at, t.call_id), '{}') AS tools,
                            max(t.finished_at) AS finished_at
                       FROM crewlog.tool_calls t
                      WHERE t.run_id = m.run_id AND t.task_id = m.task_id AND t.turn = m.turn) c;

-- What calls to models cost, in parts: what caching saved, and what was paid for answers nobody has.
CREATE VIEW crewlog.costs AS
SELECT m.tenant, m.user_name, m.day, m.run_id, m.task_id, m.key, m.kind, m.provider, m.model, bool_or(m.simulated) AS simulated,
       count(*) AS calls, sum(m.input_tokens)::bigint AS input_tokens, sum(m.output_tokens)::bigint AS output_tokens,
       sum(m.cache_read_tokens)::bigint AS cached_tokens, coalesce(sum(m.cost_micro_usd), 0)::bigint AS cost_micro_usd,
       count(*) FILTER (WHERE m.cost_micro_usd IS NULL AND m.part <> 'open') AS unpriced_calls,
       sum(m.cache_write_tokens)::bigint AS cache_write_tokens, sum(m.reasoning_tokens)::bigint AS reasoning_tokens,
       coalesce(sum(m.uncached_micro_usd - m.cost_micro_usd), 0)::bigint AS saved_micro_usd,
       count(*) FILTER (WHERE m.part = 'failed') AS failed_calls,
       coalesce(sum(m.cost_micro_usd) FILTER (WHERE m.part = 'failed'), 0)::bigint AS failed_micro_usd,
       count(*) FILTER (WHERE m.part = 'unused') AS unused_calls,
       coalesce(sum(m.cost_micro_usd) FILTER (WHERE m.part = 'unused'), 0)::bigint AS unused_micro_usd,
       count(*) FILTER (WHERE m.part = 'worst_case') AS worst_case_calls,
       coalesce(sum(m.cost_micro_usd) FILTER (WHERE m.part = 'worst_case'), 0)::bigint AS worst_case_micro_usd,
       count(*) FILTER (WHERE m.part = 'open') AS open_calls
  FROM crewlog.model_calls m
 GROUP BY m.tenant, m.user_name, m.day, m.run_id, m.task_id, m.key, m.kind, m.provider, m.model;

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
           CASE WHEN p.first IN ('kind', 'user', 'tenant', 'trial') THEN p.parts[2] END AS tenant,
           CASE WHEN p.first = 'tenant' THEN p.parts[3]::date WHEN p.first IN ('kind', 'user') THEN p.parts[4]::date END AS day,
           CASE WHEN p.first IN ('run', 'tree') AND pg_input_is_valid(p.parts[2], 'uuid') THEN p.parts[2]::uuid END AS id) n
  LEFT JOIN rm.tasks t ON n.id = t.task_id AND p.first = 'tree'
  LEFT JOIN rm.runs r ON r.run_id = coalesce(t.run_id, n.id)
  LEFT JOIN LATERAL (SELECT e.occurred_us, e.data FROM es.events e WHERE e.stream_id = 'budget/' || b.scope ORDER BY e.version DESC LIMIT 1) c ON true;

CREATE VIEW crewlog.budget_tasks AS
SELECT s.run_id, substr(s.stream_id, 6)::uuid AS task_id, b.scope
  FROM es.streams s CROSS JOIN LATERAL unnest(s.scopes) u (scope_id) JOIN es.budgets b ON b.scope_id = u.scope_id
 WHERE starts_with(s.stream_id, 'task/');

-- An effect is taken back by the first call of its compensation that succeeded after it, in whichever run. It is open while there is none, and
-- either something is there to be taken back or nobody knows what happened. A call that a trial did not carry out is none.
CREATE VIEW crewlog.effects AS
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

CREATE VIEW crewlog.approvals AS
SELECT a.approval_id, a.run_id, a.task_id, t.key, t.kind, a.call_id, a.tool, q.data -> 'arguments' AS arguments, a.reason, a.digest, a.status,
       to_timestamp(a.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(a.expires_us / 1e6::float8) AS expires_at,
       to_timestamp(a.decided_us / 1e6::float8) AS decided_at,
       a.actor, a.note, a.question
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

CREATE VIEW crewlog.events AS
SELECT e.position, to_timestamp(e.occurred_us / 1e6::float8) AS occurred_at, e.stream_id AS stream, e.version, e.type, e.schema_version,
       s.run_id, CASE WHEN starts_with(e.stream_id, 'task/') THEN substr(e.stream_id, 6)::uuid END AS task_id,
       e.actor, e.writer, e.event_id, e.causation_id, e.data
  FROM es.events e JOIN es.streams s ON s.stream_id = e.stream_id;

-- Runs that go on from others. Nothing is kept: the fact that begins each says it all.
CREATE VIEW crewlog.forks AS
SELECT n.run_id, (n.data ->> 'parent')::uuid AS parent_run_id, n.data ->> 'tenant' AS tenant, n.data ->> 'user' AS user_name,
       (n.data ->> 'at')::bigint AS shared_events, (n.data ->> 'position')::bigint AS shared_position,
       n.data -> 'changes' -> 'trial' ->> 'effects' AS effects, nullif(n.data -> 'changes' -> 'trial' ->> 'models', '') AS models,
       n.data -> 'changes' AS changes, n.data ->> 'actor' AS actor, nullif(n.data ->> 'reason', '') AS reason,
       to_timestamp(n.occurred_us / 1e6::float8) AS forked_at, n.position
  FROM es.events n
 WHERE n.type = 'RunForked';

CREATE VIEW crewlog.imports AS
SELECT i.run_id, i.file, i.sha256, i.events, i.blobs, i.actor, i.made_by, to_timestamp(i.imported_us / 1e6::float8) AS imported_at
  FROM rm.imports i;

CREATE VIEW crewlog.archives AS
SELECT a.run_id, a.tenant, a.user_name, a.type, a.goal, a.status,
       to_timestamp(a.submitted_us / 1e6::float8) AS submitted_at, to_timestamp(a.finished_us / 1e6::float8) AS finished_at,
       a.cost_micro_usd, a.events, a.file, a.sha256, a.actor, to_timestamp(a.archived_us / 1e6::float8) AS archived_at
  FROM rm.archives a;

CREATE VIEW crewlog.erasures AS
SELECT e.run_id, e.tenant, e.user_name, to_timestamp(e.erased_us / 1e6::float8) AS erased_at, e.actor, e.reason
  FROM rm.erasures e;

CREATE VIEW crewlog.agents AS
SELECT g.kind, g.worker, g.description, g.version, g.slots, g.model, g.simulated, g.tools, g.unavailable,
       to_timestamp(g.started_us / 1e6::float8) AS started_at,
       to_timestamp(g.stopped_us / 1e6::float8) AS stopped_at,
       g.is_shadow
  FROM rm.agents g;

CREATE VIEW crewlog.providers AS
SELECT a.kind, p.worker, p.wire, p.provider, p.model, p.state, p.reason,
       to_timestamp(p.until_us / 1e6::float8) AS until_at,
       to_timestamp(p.changed_us / 1e6::float8) AS changed_at
  FROM rm.providers p JOIN rm.agents a ON a.worker = p.worker
 WHERE a.stopped_us IS NULL;

-- What operators have in force, and what of it concerns each run.
CREATE VIEW crewlog.controls AS
SELECT c.measure, c.scope, c.actor, c.reason, to_timestamp(c.since_us / 1e6::float8) AS since_at
  FROM rm.controls c;

CREATE VIEW crewlog.run_controls AS
SELECT r.run_id, c.measure, c.scope, c.actor, c.reason, to_timestamp(c.since_us / 1e6::float8) AS since_at
  FROM rm.runs r
  CROSS JOIN LATERAL jsonb_to_recordset(r.controls) c (measure text, scope text, actor text, reason text, since_us bigint)
 WHERE r.controls <> '[]';

-- Open runs that an orchestrator found standing still, as long as nothing has happened to them since.
CREATE VIEW crewlog.standstills AS
SELECT e.run_id, r.tenant, e.task_id, e.data->>'what' AS what, to_timestamp((e.data->>'since_us')::bigint / 1e6::float8) AS since_at,
       to_timestamp(e.occurred_us / 1e6::float8) AS noticed_at
  FROM es.streams s
  JOIN es.events e ON e.stream_id = s.stream_id AND e.version = s.version
  JOIN rm.runs r ON r.run_id = e.run_id
 WHERE s.stream_id >= 'alert/' AND s.stream_id < 'alert0'               -- the streams of alerts, by the primary key
   AND r.finished_us IS NULL
   AND NOT EXISTS (SELECT FROM es.streams o JOIN es.events l ON l.stream_id = o.stream_id AND l.version = o.version
                    WHERE o.run_id = e.run_id AND l.position > e.position);

CREATE VIEW crewlog.documents AS
SELECT d.tenant, d.content, d.name, d.title, d.media_type, d.size, d.lines, d.library, d.text_hash, d.position
  FROM rm.documents d;

CREATE VIEW crewlog.memories AS
SELECT m.tenant, nullif(m.user_name, '') AS user_name, m.content, m.memory, m.about, m.trust, m.kind, m.run_id, m.task_id,
       to_timestamp(m.remembered_us / 1e6::float8) AS remembered_at, m.position
  FROM rm.memories m;

CREATE VIEW crewlog.checkpoints AS
SELECT c.name, c.position, c.version FROM rm.checkpoints c;

CREATE VIEW crewlog.problems AS
SELECT p.projection, p.position, 1::bigint AS events, p.stream, p.type, p.error FROM rm.problems p
UNION ALL
SELECT 'unreadable', u.first_position, u.events, NULL, u.type, u.error FROM rm.unreadable u;

RESET ROLE;
