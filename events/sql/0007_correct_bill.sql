-- The bill of a model call that was settled at the most it could cost, because nobody knew it then: it has come after all, and takes that place.
--
-- Writes one BillCorrected to p_stream, which is spend/<task>, and changes what is spent in the budgets of the task by the difference; or changes
-- nothing and says why. What the call was settled at is read off the log: its first bill must be a worst case of just the amount that the event
-- names. A call is corrected once; the same event again is answered with where it is.
-- r_status: written, duplicate, partial (the id is that of another event), denied, or settled (the call is not settled as the event says).
CREATE FUNCTION es.correct_bill(
  p_stream text, p_id uuid, p_occurred_us bigint, p_run uuid, p_task uuid, p_cause uuid, p_trace uuid, p_schema smallint, p_data json, p_actor text,
  OUT r_status text, OUT r_version bigint, OUT r_position bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off                                         -- rows are locked in the order they are given in
SET enable_mergejoin = off
AS $$
DECLARE
  task text := 'task/' || substr(p_stream, 7);
  call text := p_data ->> 'call_id';
  actual bigint := (p_data -> 'price' ->> 'cost_micro_usd')::bigint;
  settled bigint := (p_data ->> 'settled_micro_usd')::bigint;
  of_run uuid; charged bigint[]; bill json; known text;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.correct_bill needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  IF NOT starts_with(p_stream, 'spend/') OR call IS NULL OR settled IS NULL OR actual IS NULL OR NOT actual BETWEEN 0 AND 1000000000000000 THEN
    RAISE EXCEPTION 'es.correct_bill: this corrects no bill' USING ERRCODE = 'ES006';
  END IF;
  SELECT s.scopes, s.run_id INTO charged, of_run FROM streams s                     -- whoever may settle a call may correct it
   WHERE s.stream_id = task
     AND EXISTS (SELECT FROM grants a WHERE a.role = session_user AND a.category = 'spend' AND 'CallSettled' = ANY (a.types))
     AND EXISTS (SELECT FROM grants a WHERE a.role = session_user AND a.category = 'task'
                    AND es.is_covered(s.kind, a.kind, concat(',', array_to_string(a.except_kinds, ','), ',')));
  IF NOT FOUND THEN
    r_status := 'denied';
    RETURN;
  END IF;
  IF p_run IS NOT NULL AND of_run IS DISTINCT FROM p_run THEN
    r_status := 'other_run';
    RETURN;
  END IF;

  -- As in es.append: the row is written before any answer, also to a duplicate, and the watermark of readers is taken before the position.
  INSERT INTO streams AS t (stream_id, version, run_id) VALUES (p_stream, 1, of_run)
    ON CONFLICT (stream_id) DO UPDATE SET version = t.version + 1 RETURNING t.version INTO r_version;
  PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | (last_value - (NOT is_called)::int)) FROM event_position;
  SELECT CASE WHEN e.type = 'BillCorrected' THEN e.stream_id END, e.version, e.position INTO known, r_version, r_position FROM events e WHERE e.event_id = p_id;
  IF FOUND THEN
    r_status := CASE WHEN known = p_stream THEN 'duplicate' ELSE 'partial' END;
  ELSE
    WITH own AS MATERIALIZED (
      SELECT e.position, e.type, e.data FROM events e
       WHERE e.stream_id IN (task, p_stream) AND e.type IN ('ModelCallFinished', 'ModelCallFailed', 'CallSettled', 'BillCorrected')
         AND e.data ->> 'call_id' = call)
    SELECT CASE WHEN 'BillCorrected' = ANY (array_agg(o.type)) THEN NULL ELSE (array_agg(o.data -> 'price' ORDER BY o.position))[1] END INTO bill FROM own o;
    IF bill ->> 'source' = 'worst case' AND (bill ->> 'cost_micro_usd')::bigint = settled THEN
      r_status := 'written';
    ELSE
      r_status := 'settled';
    END IF;
  END IF;
  IF r_status <> 'written' THEN
    UPDATE streams t SET version = t.version - 1 WHERE t.stream_id = p_stream;
    DELETE FROM streams t WHERE t.stream_id = p_stream AND t.version = 0;      -- a refused first append leaves no empty stream
    RETURN;
  END IF;

  SELECT t.version INTO r_version FROM streams t WHERE t.stream_id = p_stream;
  INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
    VALUES (nextval('es.event_position'), r_version, p_occurred_us, p_id, of_run, p_task, p_cause, p_trace, p_schema, p_stream, 'BillCorrected', p_actor,
            session_user, p_data)
    RETURNING events.position INTO r_position;
  UPDATE budgets b SET spent = b.spent + actual - settled
    FROM (SELECT x.id FROM unnest(charged) x (id) ORDER BY x.id) c WHERE b.scope_id = c.id;
END $$;
REVOKE ALL ON FUNCTION es.correct_bill FROM public;
