-- What calls to models cost, in parts: what caching saved, and what was paid for answers nobody has.
-- Views may only grow at their end, so the new columns stand there.

SET ROLE crewlog_projector;

ALTER TABLE rm.model_calls
  ADD uncached_micro_usd bigint,                                    -- the same call at the same price without caching; NULL: the cache was not touched
  ADD wire text COLLATE "C",
  ADD request_id text COLLATE "C";

-- part: what the money was spent for. What has no outcome is open; what was charged with its upper bound, because nobody knows the bill, is
-- the worst case; everything else goes by its status.
CREATE OR REPLACE VIEW crewlog.model_calls AS
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

CREATE OR REPLACE VIEW crewlog.costs AS
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

RESET ROLE;
