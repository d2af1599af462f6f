-- Effects: how each is taken back, whether it was, and what is left to clean up. Views may only grow at their end.

SET ROLE crewlog_projector;

ALTER TABLE rm.tool_calls
  ADD fingerprint text COLLATE "C",                                 -- of tenant, kind, tool and arguments: the same for calls that ask for the same
  ADD compensation jsonb,                                           -- what to call to take the effect back; its fingerprint is that of the call
  ADD reused jsonb;                                                 -- nothing ran: the call whose outcome this is
CREATE INDEX ON rm.tool_calls (fingerprint, outcome_position) WHERE status = 'ok' AND fingerprint IS NOT NULL;
CREATE INDEX ON rm.tool_calls (started_us) WHERE compensation IS NOT NULL OR status IN ('unknown', 'interrupted', 'abandoned');

ALTER TABLE rm.approvals ADD question text COLLATE "C";             -- what is asked besides whether a call may run

CREATE OR REPLACE VIEW crewlog.tool_calls AS
SELECT c.run_id, c.task_id, c.call_id, c.turn, c.tool, c.tool_version, c.effect, c.status, c.starts, c.idempotency_key, c.approval_id,
       c.trust, c.latency_ms,
       to_timestamp(c.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(c.started_us / 1e6::float8) AS started_at,
       to_timestamp(c.finished_us / 1e6::float8) AS finished_at,
       (SELECT a.value -> 'arguments' FROM json_array_elements(q.data -> 'tool_calls') a WHERE a.value ->> 'call_id' = c.call_id) AS arguments,
       o.data -> 'result' AS result, o.data -> 'artifacts' AS artifacts, c.outcome_position AS position,
       c.fingerprint, c.reused
  FROM rm.tool_calls c
  LEFT JOIN es.events q ON q.position = c.requested_position
  LEFT JOIN es.events o ON o.position = c.outcome_position;

-- An effect is taken back by the first call of its compensation that succeeded after it, in whichever run. It is open while there is none, and
-- either something is there to be taken back or nobody knows what happened.
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
 WHERE c.effect <> 'read';

CREATE OR REPLACE VIEW crewlog.approvals AS
SELECT a.approval_id, a.run_id, a.task_id, t.key, t.kind, a.call_id, a.tool, q.data -> 'arguments' AS arguments, a.reason, a.digest, a.status,
       to_timestamp(a.requested_us / 1e6::float8) AS requested_at,
       to_timestamp(a.expires_us / 1e6::float8) AS expires_at,
       to_timestamp(a.decided_us / 1e6::float8) AS decided_at,
       a.actor, a.note, a.question
  FROM rm.approvals a
  LEFT JOIN rm.tasks t ON t.task_id = a.task_id
  LEFT JOIN es.events q ON q.position = a.requested_position;

RESET ROLE;
