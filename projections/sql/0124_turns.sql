-- Turns of tasks: what was asked and called between two looks of a model at its task.

SET ROLE crewlog_projector;

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

RESET ROLE;
