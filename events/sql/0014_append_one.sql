-- es.append_one: the appends that most often come alone, in a tenth of the statements. One request, one stream that is there, an exact
-- expected version, no money. It writes and answers the new positions, or changes nothing and answers NULL: whatever is not as plain as it
-- looked (a conflict, a duplicate, a missing right, a closed stream, a call without money) is for es.append to decide and to say.
--
-- An event id that is known already raises unique_violation, which is for es.append too.
--   p_types, p_schemas, e_id, e_data   one entry for each event, in order
--   p_free   the one model call among them was reserved and settled at 0 by this very request, so there is nothing to keep of it
CREATE FUNCTION es.append_one(
  p_stream text, p_expected bigint, p_occurred_us bigint, p_run uuid, p_task uuid, p_cause uuid, p_trace uuid,
  p_types text[], p_schemas smallint[], e_id uuid[], e_data json[], p_actor text, p_free boolean, OUT r_positions bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
  writer text := session_user;
  events_n int := cardinality(e_id);
  calls int := cardinality(array_positions(p_types, 'ModelCallStarted'));
  written boolean;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.append_one needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  IF events_n < 1 OR cardinality(p_types) <> events_n OR cardinality(p_schemas) <> events_n OR cardinality(e_data) <> events_n THEN
    RAISE EXCEPTION 'es.append_one: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  IF NOT p_expected > 0 OR 'BudgetChanged' = ANY (p_types) THEN
    RETURN;
  END IF;

  -- Rights, the end of a stream, its version and its lock in one statement.
  UPDATE streams t
     SET version = t.version + events_n, closed_at = CASE WHEN p_types[events_n] = ANY (g.closing) THEN clock_timestamp() END
    FROM grants g
   WHERE t.stream_id = p_stream AND t.version = p_expected AND t.closed_at IS NULL
     AND (t.scopes IS NULL OR calls = 0 OR (calls = 1 AND p_free))
     AND g.role = writer AND g.category = split_part(p_stream, '/', 1) AND p_types <@ g.types AND NOT p_types[:events_n - 1] && g.closing
     AND es.is_covered(t.kind, g.kind, concat(',', array_to_string(g.except_kinds, ','), ','))
  RETURNING true INTO written;
  IF written IS NULL THEN
    RETURN;
  END IF;

  -- Readers' watermark, as in es.append: read the sequence, take the lock, draw positions.
  PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | (last_value - (NOT is_called)::int)) FROM event_position;
  FOR k IN 1..events_n LOOP r_positions[k] := nextval('es.event_position'); END LOOP;
  INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
  SELECT u.p, p_expected + u.o, p_occurred_us, u.id, p_run, p_task, p_cause, p_trace, u.schema, p_stream, u.type, p_actor, writer, u.d
    FROM unnest(r_positions, e_id, p_schemas, p_types, e_data) WITH ORDINALITY u (p, id, schema, type, d, o);
END $$;
REVOKE ALL ON FUNCTION es.append_one FROM public;

-- Whoever may append may do so in this way too.
DO $$
DECLARE g record;
BEGIN
  FOR g IN SELECT DISTINCT a.grantee::regrole AS login FROM pg_proc p, aclexplode(p.proacl) a
            WHERE p.oid = 'es.append'::regproc AND a.privilege_type = 'EXECUTE' AND a.grantee NOT IN (0, p.proowner) LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION es.append_one TO %s', g.login);
  END LOOP;
END $$;
