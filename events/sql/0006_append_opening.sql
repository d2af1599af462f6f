-- What opens streams and nothing else is written in a few statements: a run that is submitted, its plan and its first tasks.
--
-- es.append can do it too, and decides request by request; es.append_opening writes a batch of such requests or changes nothing and answers
-- NULL. A stream that is there already, a known event id and a missing right are for es.append to decide and to say.
--
-- One entry of p_stream … w_request for each stream, one of q_occurred_us … q_trace for each request, one of e_type … e_data for each event, in the
-- order they are to have in the log. Arrays that hold nothing but NULL may be empty.
--   p_stream    each stream once
--   p_events    number of events
--   w_request   index into q_occurred_us … q_trace
--   p_scope, p_soft, p_hard, b_write, b_limit   as in es.append: the scopes that streams of tasks are bound to
-- Answers the position of each event, or NULL if this is for es.append.
CREATE FUNCTION es.append_opening(
  p_stream text[], p_kind text[], p_events int[], w_request int[],
  q_occurred_us bigint[], q_run uuid[], q_task uuid[], q_cause uuid[], q_trace uuid[],
  p_types text[], p_schemas smallint[], e_type int[], e_id uuid[], e_data json[], p_actor text,
  p_scope text[] DEFAULT '{}', p_soft bigint[] DEFAULT '{}', p_hard bigint[] DEFAULT '{}', b_write int[] DEFAULT '{}', b_limit int[] DEFAULT '{}',
  OUT r_positions bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp
SET plan_cache_mode = force_generic_plan                          -- custom plans cost 90 us per small call
SET enable_seqscan = off
SET enable_hashjoin = on                                          -- sessions of the log have it off
AS $$
DECLARE
  writer text := session_user;
  streams_n int := cardinality(p_stream);
  events_n int := cardinality(e_id);
  e_write int[]; e_version int[];
  k_scope bigint[];             -- scope with limits -> its row
  bound boolean; written int; e int := 0;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.append_opening needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  IF cardinality(p_events) <> streams_n OR cardinality(w_request) <> streams_n OR cardinality(e_type) <> events_n OR cardinality(e_data) <> events_n
     OR cardinality(b_limit) <> cardinality(b_write) OR cardinality(p_soft) <> cardinality(p_scope) OR cardinality(p_hard) <> cardinality(p_scope) THEN
    RAISE EXCEPTION 'es.append_opening: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  FOR w IN 1..streams_n LOOP
    FOR k IN 1..p_events[w] LOOP
      e := e + 1; e_write[e] := w; e_version[e] := k;
    END LOOP;
  END LOOP;
  IF e <> events_n OR 1 > ANY (p_events || w_request) OR cardinality(q_occurred_us) < ANY (w_request) THEN
    RAISE EXCEPTION 'es.append_opening: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  -- What begins a call or changes a limit is about money, and what closes a stream has rules of its own.
  IF p_types && '{ModelCallStarted,BudgetChanged}' OR 0 > ANY (p_soft || p_hard) OR 1000000000000000 < ANY (p_soft || p_hard)
     OR EXISTS (SELECT FROM (SELECT DISTINCT split_part(p_stream[u.w], '/', 1), p_types[u.t] FROM unnest(e_write, e_type) u (w, t)) x (category, type)
                 WHERE x.category = 'spend' OR (q_run <> '{}' AND x.category NOT IN ('run', 'task', 'alert'))
                    OR NOT EXISTS (SELECT FROM grants g WHERE g.role = writer AND g.category = x.category AND g.opens
                                      AND x.type = ANY (g.types) AND x.type <> ALL (g.closing))) THEN
    RETURN;
  END IF;
  -- Scopes are for streams of tasks, and nobody makes one that no stream of his is bound to: its limits would hold for others.
  SELECT count(DISTINCT b.l) = cardinality(p_scope) AND bool_and((starts_with(p_stream[b.w], 'task/') AND b.l BETWEEN 1 AND cardinality(p_scope)) IS TRUE)
    INTO bound FROM unnest(b_write, b_limit) b (w, l);
  IF bound IS FALSE OR (bound IS NULL AND b_write || b_limit <> '{}') THEN
    RETURN;
  END IF;

  BEGIN
    IF p_scope <> '{}' THEN
      INSERT INTO budgets (scope, soft, hard)
      SELECT DISTINCT ON (u.scope COLLATE "C") u.scope, u.soft, u.hard FROM unnest(p_scope, p_soft, p_hard) WITH ORDINALITY u (scope, soft, hard, o)
       WHERE NOT EXISTS (SELECT FROM budgets b WHERE b.scope = u.scope) ORDER BY u.scope COLLATE "C", u.o
      ON CONFLICT (scope) DO NOTHING;
      SELECT array_agg(b.scope_id ORDER BY u.o) INTO k_scope FROM unnest(p_scope) WITH ORDINALITY u (scope, o) JOIN budgets b ON b.scope = u.scope;
    END IF;
    INSERT INTO streams (stream_id, version, run_id, kind, scopes)
    SELECT u.name, u.n, q_run[u.q], u.kind, s.scopes
      FROM unnest(p_stream, p_events, w_request, p_kind) WITH ORDINALITY u (name, n, q, kind, o)
      LEFT JOIN (SELECT b.w, array_agg(k_scope[b.l] ORDER BY b.o) AS scopes
                   FROM unnest(b_write, b_limit) WITH ORDINALITY b (w, l, o) GROUP BY b.w) s ON s.w = u.o
     WHERE strpos(u.name, '/') > 0 ORDER BY u.name COLLATE "C"
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> streams_n THEN
      RAISE EXCEPTION 'one of them is there' USING ERRCODE = 'ES010';
    END IF;
    -- Readers' watermark, as in es.append: read the sequence, take the lock, draw positions.
    PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | (last_value - (NOT is_called)::int)) FROM event_position;
    FOR k IN 1..events_n LOOP r_positions[k] := nextval('es.event_position'); END LOOP;
    INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
    SELECT u.p, u.v, q_occurred_us[w_request[u.w]], u.id, q_run[w_request[u.w]], q_task[w_request[u.w]], q_cause[w_request[u.w]], q_trace[w_request[u.w]],
           p_schemas[u.t], p_stream[u.w], p_types[u.t], p_actor, writer, u.d
      FROM unnest(r_positions, e_version, e_id, e_write, e_type, e_data) u (p, v, id, w, t, d);
  EXCEPTION WHEN unique_violation OR check_violation OR SQLSTATE 'ES010' THEN      -- an event id is known; a run is named that its append does not name
    r_positions := NULL;
  END;
END $$;
REVOKE ALL ON FUNCTION es.append_opening FROM public;
