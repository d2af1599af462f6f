-- What is plain is written without being looked at one by one.
--
-- Nearly every append is plain: it writes to one stream that is there, at the version it expects, and reserves money for one call or settles
-- one, or none. es.append_plain writes a whole batch of such in a few statements, or changes nothing and answers NULL: whatever is not as
-- plain as it looked (a conflict, a duplicate, a missing right, a limit that is near) is for es.append to decide and to say.
--
-- What agents of one run reserve is one sum for all their scopes. The budgets of a batch are read and charged in one pass over their numbers, and a
-- charge that may pass a limit is no charge: the count of rows says so. Where an append has one event, which is no model call and ends nothing, events
-- need not be gone through.
--
-- One entry of p_stream … q_trace for each append, in the order they are to have in the log, one of e_type … e_data for each event, in that order.
-- Arrays that hold nothing but NULL may be empty.
--   p_stream    each stream once, all of one category
--   p_expected  version of the stream, 1 at least
--   p_events    number of events; empty: one each
--   e_type      index into p_types and p_schemas
--   h_id, h_amount   reserve: the reservation and its micro-USD
--   h_id, h_actual   settle: the reservation made on this stream before, and the price in fact
--   h_amount    of 0 and nothing else: a call that is free, reserved and settled by this very append
-- Answers the position of each event, or NULL if this is for es.append.
CREATE FUNCTION es.append_plain(
  p_stream text[], p_expected bigint[], p_events int[],
  q_occurred_us bigint[], q_run uuid[], q_task uuid[], q_cause uuid[], q_trace uuid[],
  p_types text[], p_schemas smallint[], e_type int[], e_id uuid[], e_data json[], p_actor text,
  h_id uuid[] DEFAULT '{}', h_amount bigint[] DEFAULT '{}', h_actual bigint[] DEFAULT '{}', OUT r_positions bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp
SET plan_cache_mode = force_generic_plan                          -- custom plans cost 90 us per small call
SET enable_seqscan = off
SET enable_hashjoin = off                                         -- rows are locked in the order they are given in
SET enable_mergejoin = off
SET enable_bitmapscan = off                                       -- … and budgets in the order of their numbers
SET enable_hashagg = off                                          -- a few hundred amounts are summed up faster in order
AS $$
DECLARE
  writer text := session_user;
  appends int := cardinality(p_stream);
  events_n int := cardinality(e_id);
  prefix text := split_part(p_stream[1], '/', 1) || '/';
  g_kind text; g_except text;                                     -- the grant of this login
  g_closing text[];                                               -- NULL when no type of the batch closes a stream
  calls boolean := 'ModelCallStarted' = ANY (p_types);
  closes boolean[];                                               -- append -> whether it closes its stream
  e_append int[]; e_version bigint[];
  c_scope bigint[];                                               -- numbers of the budgets that are charged
  c_from bigint[];                                                -- ascending: from which of them on an entry of the next three is meant
  c_spent bigint[]; c_reserved bigint[]; c_most bigint[];         -- what is added, and how much it could be if nothing were given back
  written int; called int; e int := 0; n int; v bigint;
BEGIN
  IF array_ndims(p_stream) > 1 OR array_lower(p_stream, 1) <> 1 OR array_ndims(p_events) > 1 OR array_lower(p_events, 1) <> 1
     OR array_ndims(p_types) > 1 OR array_lower(p_types, 1) <> 1 OR array_ndims(e_type) > 1 OR array_lower(e_type, 1) <> 1 THEN
    RAISE EXCEPTION 'es.append_plain: a list counts from 1' USING ERRCODE = 'ES006';
  END IF;
  IF prefix = 'spend/' OR (q_run <> '{}' AND (array_ndims(q_run) > 1 OR array_lower(q_run, 1) <> 1)) THEN
    RETURN;
  END IF;
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.append_plain needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  IF cardinality(p_expected) <> appends OR cardinality(q_occurred_us) <> appends
     OR (cardinality(p_events) IS DISTINCT FROM appends AND (p_events <> '{}' OR appends <> events_n) IS NOT FALSE)
     OR cardinality(e_type) <> events_n OR cardinality(e_data) <> events_n THEN
    RAISE EXCEPTION 'es.append_plain: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  IF 'BudgetChanged' = ANY (p_types) OR 0 > ANY (h_amount || h_actual) OR 1000000000000000 < ANY (h_amount || h_actual) THEN
    RETURN;
  END IF;
  IF h_id <> '{}' AND 0 <= ANY (h_amount) THEN
    PERFORM FROM reservations x WHERE x.reservation_id = ANY (h_id);
    IF FOUND THEN
      RETURN;
    END IF;
  END IF;
  SELECT kind, concat(',', array_to_string(except_kinds, ','), ','), CASE WHEN p_types && closing THEN closing END
    INTO g_kind, g_except, g_closing FROM grants WHERE role = writer AND category = rtrim(prefix, '/') AND p_types <@ types;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF g_closing IS NOT NULL THEN
    closes := array_fill(false, ARRAY[appends]);
  END IF;
  IF p_events <> '{}' OR calls OR g_closing IS NOT NULL THEN      -- else each event is an append, and need not be looked at
    FOR a IN 1..appends LOOP
      n := coalesce(p_events[a], 1); v := p_expected[a]; called := 0;
      IF n < 1 OR e + n > events_n THEN
        RAISE EXCEPTION 'es.append_plain: append % does not fit', a USING ERRCODE = 'ES006';
      END IF;
      FOR k IN 1..n LOOP
        e := e + 1; v := v + 1; e_append[e] := a; e_version[e] := v;
        IF calls AND p_types[e_type[e]] = 'ModelCallStarted' THEN called := called + 1; END IF;
        IF p_types[e_type[e]] = ANY (g_closing) THEN
          IF k < n THEN RETURN; END IF;
          closes[a] := true;
        END IF;
      END LOOP;
      IF called > 0 AND (called > 1 OR h_actual[a] IS NOT NULL OR (h_amount[a] = 0 OR (h_amount[a] > 0 AND h_id[a] IS NOT NULL)) IS NOT TRUE) THEN
        RETURN;                                                   -- one per append, and with the money for it
      END IF;
    END LOOP;
    IF e <> events_n THEN
      RAISE EXCEPTION 'es.append_plain: arrays do not fit together' USING ERRCODE = 'ES006';
    END IF;
  END IF;

  BEGIN
    -- Rights, the end of a stream, its version, its lock and its reservation in one statement.
    IF h_id = '{}' THEN
      UPDATE streams t SET version = t.version + coalesce(u.events, 1), closed_at = CASE WHEN u.closes THEN clock_timestamp() END
        FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes, q_run) x (name, expected, events, closes, run) ORDER BY name COLLATE "C") u
       WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND t.run_id IS NOT DISTINCT FROM u.run
         AND starts_with(t.stream_id, prefix) AND es.is_covered(t.kind, g_kind, g_except) AND (u.closes IS NOT TRUE OR t.held_id IS NULL);
      GET DIAGNOSTICS written = ROW_COUNT;
    ELSE
      WITH touched AS (
        UPDATE streams t
           SET version = t.version + coalesce(u.events, 1), closed_at = CASE WHEN u.closes THEN clock_timestamp() END,
               held_id = CASE WHEN u.held IS NULL THEN t.held_id WHEN u.actual IS NULL THEN u.held END,
               held_amount = CASE WHEN u.held IS NOT NULL AND u.actual IS NULL THEN u.amount ELSE t.held_amount END,
               held_at = CASE WHEN u.held IS NOT NULL AND u.actual IS NULL THEN u.expected + 1 ELSE t.held_at END
          FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes, h_id, h_amount, h_actual, q_run)
                              x (name, expected, events, closes, held, amount, actual, run) ORDER BY name COLLATE "C") u
         WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND t.run_id IS NOT DISTINCT FROM u.run
           AND starts_with(t.stream_id, prefix) AND es.is_covered(t.kind, g_kind, g_except)
           AND CASE WHEN u.held IS NULL THEN (u.closes IS NOT TRUE OR t.held_id IS NULL) AND u.actual IS NULL AND (u.amount > 0) IS NOT TRUE
                    WHEN u.actual IS NULL THEN u.closes IS NOT TRUE AND t.held_id IS NULL AND u.amount IS NOT NULL
                    ELSE t.held_id = u.held AND u.amount IS NULL END
        RETURNING CASE WHEN u.amount > 0 OR u.actual > 0 OR (u.actual = 0 AND t.held_amount > 0) THEN t.scopes END AS scopes,
                  u.actual AS spent, CASE WHEN u.actual IS NULL THEN u.amount ELSE -t.held_amount END AS reserved, coalesce(u.amount, u.actual) AS most),
      whole AS (                                                  -- agents of one run have the same scopes: one sum goes to each of them
        SELECT count(*) AS n, min(scopes) AS least, max(scopes) AS greatest, es.total(spent) FILTER (WHERE scopes IS NOT NULL) AS spent,
               es.total(reserved) FILTER (WHERE scopes IS NOT NULL) AS reserved, es.total(most) FILTER (WHERE scopes IS NOT NULL) AS most FROM touched)
      SELECT w.n, coalesce(m.id, w.least), coalesce(m.id, '{0}'), coalesce(m.spent, ARRAY[w.spent]), coalesce(m.reserved, ARRAY[w.reserved]),
             coalesce(m.most, ARRAY[w.most])
        INTO written, c_scope, c_from, c_spent, c_reserved, c_most
        FROM whole w LEFT JOIN LATERAL (                          -- others are mixed: a sum for each of their scopes
          SELECT array_agg(s.id) AS id, array_agg(s.spent) AS spent, array_agg(s.reserved) AS reserved, array_agg(s.most) AS most
            FROM (SELECT x.id, es.total(x.spent) AS spent, es.total(x.reserved) AS reserved, es.total(x.most) AS most
                    FROM (SELECT unnest(scopes) AS id, spent, reserved, most FROM touched WHERE w.least <> w.greatest) x
                   GROUP BY x.id ORDER BY x.id) s) m ON true;
    END IF;
    IF written < appends THEN
      RAISE EXCEPTION 'one of them is not plain' USING ERRCODE = 'ES010';
    END IF;
    IF c_scope IS NOT NULL THEN                                   -- where a limit is near already, the rest would be for nothing
      PERFORM FROM budgets b WHERE b.scope_id = ANY (c_scope) AND b.spent + b.reserved + c_most[width_bucket(b.scope_id, c_from)] > least(b.soft, b.hard);
      IF FOUND THEN
        RAISE EXCEPTION 'a limit is near' USING ERRCODE = 'ES010';
      END IF;
    END IF;

    -- Readers' watermark, as in es.append: read the sequence, take the lock, draw positions.
    PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | (last_value - (NOT is_called)::int)) FROM event_position;
    FOR k IN 1..events_n LOOP r_positions[k] := nextval('es.event_position'); END LOOP;
    INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
    SELECT u.p, u.v, q_occurred_us[u.a], u.id, q_run[u.a], q_task[u.a], q_cause[u.a], q_trace[u.a],
           p_schemas[u.t], p_stream[u.a], p_types[u.t], p_actor, writer, u.d
      FROM (SELECT x.p, coalesce(x.v, p_expected[x.o] + 1) AS v, x.id, coalesce(x.a, x.o) AS a, x.t, x.d
              FROM unnest(r_positions, e_version, e_id, e_append, e_type, e_data) WITH ORDINALITY x (p, v, id, a, t, d, o)) u;

    -- Charge the rows: they are shared by many, so they are locked last of all.
    IF c_scope IS NOT NULL THEN
      UPDATE budgets b SET spent = b.spent + c_spent[width_bucket(b.scope_id, c_from)], reserved = b.reserved + c_reserved[width_bucket(b.scope_id, c_from)]
       WHERE b.scope_id = ANY (c_scope) AND (b.spent + b.reserved + c_most[width_bucket(b.scope_id, c_from)] > least(b.soft, b.hard)) IS NOT TRUE;
      GET DIAGNOSTICS written = ROW_COUNT;
      IF written < cardinality(c_scope) THEN                      -- somebody may not fit, or is to be warned
        RAISE EXCEPTION 'a limit is near' USING ERRCODE = 'ES010';
      END IF;
    END IF;
  EXCEPTION WHEN unique_violation OR SQLSTATE 'ES010' THEN        -- unique_violation: an event id is known
    r_positions := NULL;
  END;
END $$;
REVOKE ALL ON FUNCTION es.append_plain FROM public;
