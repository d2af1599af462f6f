-- es.append: the gate. Appends a batch of independent requests, each of them atomic and idempotent.
--
-- One pass locks and advances all streams in sorted order, a loop over arrays decides every request, one INSERT writes all events,
-- and what the loop refused is corrected. The arrays refer to each other by index, from 1:
--   p_streams     distinct, ascending
--   writes w_*    in request order: request, stream, expected version (-1: any), number of events, agent kind to open the stream with
--   requests q_*  occurred_us, run, task, cause, trace
--   types         distinct pairs of p_types and p_schemas
--   events e_*    in write order: type, id, data
-- An empty array stands for one that is all NULL (w_kind, q_run, q_task, q_cause, q_trace).
-- Answers with version and position of each event (version 0: refused) and one json object for each request that is not simply ok:
--   {"request", "status": "duplicate", "versions", "positions"}   all its ids are known: the original answer
--   {"request", "status": "conflict", "stream", "version", "closed"}
--   {"request", "status": "partial"}                              some ids are known, or known on another stream
--   {"request", "status": "denied", "reason"}
--   {"request", "status": "malformed", "reason"}

CREATE FUNCTION es.append(
  p_streams text[],
  w_request int[], w_stream int[], w_expected bigint[], w_events int[], w_kind text[],
  q_occurred_us bigint[], q_run uuid[], q_task uuid[], q_cause uuid[], q_trace uuid[],
  p_types text[], p_schemas smallint[],
  e_type int[], e_id uuid[], e_data json[],
  p_actor text
) RETURNS TABLE (r_versions bigint[], r_positions bigint[], r_special jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp
SET plan_cache_mode = force_generic_plan                          -- custom plans cost 90 us per small call
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
  writer text := session_user;
  requests int := cardinality(q_occurred_us);
  streams_n int := cardinality(p_streams);
  writes int := cardinality(w_request);
  events_n int := cardinality(e_id);
  types_n int := cardinality(p_types);
  g record;                     -- one grant of this login
  g_prefix text[] := '{}'; g_kind text[] := '{}'; g_except text[] := '{}'; g_opens boolean[] := '{}';
  closing text[] := '{}';       -- event types that close a stream
  granted int[];                -- stream -> number of the grant that covers it; 0: none
  types_vary boolean := true;   -- false when every type of the batch is allowed on every stream of the batch
  type_allowed boolean[];       -- (grant, type) row by row
  type_closes boolean[];        -- NULL when no type of the batch closes anything
  added bigint[];               -- stream -> events of the whole batch
  opener int[];                 -- stream -> the write that opens it, if it is new
  ours text[];                  -- streams that were locked
  plain boolean;                -- no event needs a look of its own
  advanced bigint[];            -- stream -> version in the table after the locking pass
  was_closed boolean[]; closed boolean[];
  latest bigint[];              -- stream -> version after the requests decided so far
  versions bigint[]; positions bigint[]; e_write int[];
  known_event int[]; known_stream text[]; known_version bigint[]; known_position bigint[];
  looked_up boolean := false; reopened boolean := false;
  special jsonb; answer jsonb; refused boolean;
  tries int := 0;
  lower_bound bigint;
  q int; w int; w0 int; s int; e int; e0 int; k int; v bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.append needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  IF requests = 0 OR writes < requests OR events_n < writes OR cardinality(w_stream) <> writes OR cardinality(w_expected) <> writes
     OR cardinality(w_events) <> writes OR cardinality(e_type) <> events_n OR cardinality(e_data) <> events_n THEN
    RAISE EXCEPTION 'es.append: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  FOR k IN 2..streams_n LOOP                                      -- sorted locking is what keeps batches from deadlocking
    IF p_streams[k] <= p_streams[k - 1] COLLATE "C" THEN
      RAISE EXCEPTION 'es.append: streams must be distinct and ascending' USING ERRCODE = 'ES006';
    END IF;
  END LOOP;

  -- Rights: one grant per login and category. Streams are sorted, so when the first and the last share a category, all do.
  FOR g IN SELECT category || '/' AS prefix, types, closing, kind, except_kinds, opens FROM grants WHERE role = writer ORDER BY category LOOP
    g_prefix := g_prefix || g.prefix; g_opens := g_opens || g.opens; closing := closing || g.closing;
    g_kind := g_kind || g.kind; g_except := g_except || concat(',', array_to_string(g.except_kinds, ','), ',');
    IF starts_with(p_streams[1], g.prefix) AND starts_with(p_streams[streams_n], g.prefix) THEN
      granted := array_fill(cardinality(g_prefix), ARRAY[streams_n]);
      types_vary := NOT p_types <@ g.types;
    END IF;
  END LOOP;
  IF g_prefix = '{}' THEN
    RAISE EXCEPTION 'login % has no grant to append', writer USING ERRCODE = '42501';
  END IF;
  IF types_vary THEN
    SELECT array_agg(t.name = ANY (a.types) ORDER BY a.category, t.o) INTO type_allowed
      FROM grants a, unnest(p_types) WITH ORDINALITY t (name, o) WHERE a.role = writer;
  END IF;
  IF p_types && closing THEN
    SELECT array_agg(t.name = ANY (closing) ORDER BY t.o) INTO type_closes FROM unnest(p_types) WITH ORDINALITY t (name, o);
  END IF;
  IF granted IS NULL THEN
    granted := array_fill(0, ARRAY[streams_n]);
    FOR s IN 1..streams_n LOOP
      FOR k IN 1..cardinality(g_prefix) LOOP
        IF starts_with(p_streams[s], g_prefix[k]) THEN granted[s] := k; EXIT; END IF;
      END LOOP;
    END LOOP;
  END IF;

  -- Lock, create and advance every stream in one sorted pass. Writing the row comes before any answer, also to a duplicate: a transaction
  -- that wrote nothing would not wait for a synchronous standby and could acknowledge what a failover then loses.
  -- Streams outside the login's rights are neither locked nor created.
  added := array_fill(0::bigint, ARRAY[streams_n]);
  opener := array_fill(0, ARRAY[streams_n]);
  FOR w IN 1..writes LOOP
    s := w_stream[w];
    IF added[s] = 0 THEN opener[s] := w; END IF;
    added[s] := added[s] + w_events[w];
  END LOOP;
  WITH touched AS (
    INSERT INTO streams AS t (stream_id, version, run_id, kind)
    SELECT u.name, u.n, q_run[w_request[opener[u.o]]], w_kind[opener[u.o]]
      FROM unnest(p_streams, added) WITH ORDINALITY u (name, n, o)
     WHERE granted[u.o] > 0
       AND (g_opens[granted[u.o]]
            OR EXISTS (SELECT FROM streams z WHERE z.stream_id = u.name
                          AND (g_kind[granted[u.o]] IS NULL OR z.kind = g_kind[granted[u.o]])
                          AND (g_except[granted[u.o]] = ',,' OR strpos(g_except[granted[u.o]], concat(',', z.kind, ',')) = 0 AND z.kind IS NOT NULL)))
     ORDER BY u.o
    ON CONFLICT (stream_id) DO UPDATE SET version = t.version + excluded.version
    RETURNING stream_id, version, closed_at)
  SELECT array_agg(stream_id ORDER BY stream_id), array_agg(version ORDER BY stream_id), array_agg(closed_at IS NOT NULL ORDER BY stream_id)
    INTO ours, advanced, was_closed FROM touched;
  IF ours IS NULL OR cardinality(ours) < streams_n THEN           -- some were left out: align the arrays again
    SELECT array_agg(CASE WHEN t.name IS NULL THEN 0 ELSE granted[u.o] END ORDER BY u.o),
           array_agg(coalesce(t.version, 0) ORDER BY u.o), array_agg(coalesce(t.closed, false) ORDER BY u.o)
      INTO granted, advanced, was_closed
      FROM unnest(p_streams) WITH ORDINALITY u (name, o) LEFT JOIN unnest(ours, advanced, was_closed) t (name, version, closed) ON t.name = u.name;
  END IF;
  plain := NOT (0 = ANY (granted) OR types_vary OR type_closes IS NOT NULL);

  -- Readers' watermark: every position this transaction draws is above lower_bound, and whoever sees the lock reads no further.
  -- The order is (a) read the sequence, (b) take the lock, (c) draw positions.
  SELECT last_value - (NOT is_called)::int INTO lower_bound FROM event_position;
  PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | lower_bound);

  LOOP
    tries := tries + 1; refused := false; special := '[]'; w := 0; e := 0;
    closed := was_closed; versions := array_fill(0::bigint, ARRAY[events_n]); e_write := array_fill(1, ARRAY[events_n]);
    latest := advanced;
    FOR s IN 1..streams_n LOOP
      IF granted[s] > 0 THEN latest[s] := advanced[s] - added[s]; END IF;
    END LOOP;

    FOR q IN 1..requests LOOP
      answer := NULL; w0 := w + 1; e0 := e + 1;
      LOOP
        w := w + 1; s := w_stream[w]; e := e + w_events[w];
        IF w_request[w] <> q OR w_events[w] < 1 OR e > events_n THEN
          RAISE EXCEPTION 'es.append: request % does not fit', q USING ERRCODE = 'ES006';
        END IF;
        IF answer IS NULL AND (closed[s] OR (w_expected[w] >= 0 AND w_expected[w] <> latest[s])) THEN
          answer := jsonb_build_object('status', 'conflict', 'stream', p_streams[s], 'version', latest[s], 'closed', closed[s]);
        END IF;
        EXIT WHEN w = writes OR w_request[w + 1] <> q;
      END LOOP;
      IF known_event IS NOT NULL THEN                             -- duplicates before versions
        answer := coalesce(es.known_answer(e0, e, w0, w, p_streams, w_stream, w_events, known_event, known_stream, known_version, known_position), answer);
      END IF;
      IF NOT plain THEN                                           -- rights before everything
        k := e0;
        FOR x IN w0..w LOOP
          s := w_stream[x];
          IF granted[s] = 0 THEN
            answer := jsonb_build_object('status', 'denied', 'reason', p_streams[s] || ' is unknown or not for ' || writer); EXIT;
          END IF;
          FOR y IN k..k + w_events[x] - 1 LOOP
            IF types_vary AND NOT type_allowed[(granted[s] - 1) * types_n + e_type[y]] THEN
              answer := jsonb_build_object('status', 'denied', 'reason', p_types[e_type[y]] || ' on ' || p_streams[s]);
            ELSIF answer IS NULL AND type_closes[e_type[y]] AND y < k + w_events[x] - 1 THEN
              answer := jsonb_build_object('status', 'malformed', 'reason', p_types[e_type[y]] || ' must be the last event of ' || p_streams[s]);
            END IF;
          END LOOP;
          k := k + w_events[x];
        END LOOP;
      END IF;
      IF answer IS NOT NULL THEN
        special := special || (answer || jsonb_build_object('request', q)); refused := true;
        CONTINUE;
      END IF;
      IF plain AND e = e0 THEN                                    -- the common case: one event
        v := latest[s] + 1; latest[s] := v; versions[e] := v; e_write[e] := w;
        CONTINUE WHEN v > 1 OR opener[s] = w;
        opener[s] := w; reopened := true;
        CONTINUE;
      END IF;
      k := e0;
      FOR x IN w0..w LOOP
        s := w_stream[x]; v := latest[s];
        IF v = 0 AND opener[s] <> x THEN opener[s] := x; reopened := true; END IF;   -- an earlier request would have opened it, but was refused
        FOR y IN 1..w_events[x] LOOP
          v := v + 1; versions[k] := v; e_write[k] := x; k := k + 1;
        END LOOP;
        latest[s] := v;
        IF type_closes[e_type[k - 1]] THEN closed[s] := true; END IF;
      END LOOP;
    END LOOP;
    IF e <> events_n OR w <> writes THEN
      RAISE EXCEPTION 'es.append: arrays do not fit together' USING ERRCODE = 'ES006';
    END IF;

    -- With an exact expected version the unique index is check enough; ids are looked up only when the answer could depend on them.
    IF (refused OR -1 = ANY (w_expected)) AND NOT looked_up THEN
      looked_up := true;
      IF (SELECT count(DISTINCT x) FROM unnest(e_id) x) < events_n THEN
        RAISE EXCEPTION 'es.append: one event id twice in a call' USING ERRCODE = 'ES007';   -- the client takes the batch apart
      END IF;
      SELECT array_agg(u.o::int), array_agg(n.stream_id), array_agg(n.version), array_agg(n.position)
        INTO known_event, known_stream, known_version, known_position
        FROM unnest(e_id) WITH ORDINALITY u (id, o) JOIN events n ON n.event_id = u.id;
      IF known_event IS NOT NULL THEN CONTINUE; END IF;
    END IF;
    BEGIN
      SELECT array_agg(nextval('es.event_position')) INTO positions FROM generate_series(1, events_n);
      INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
      SELECT u.p, u.v, q_occurred_us[w_request[u.w]], u.id, q_run[w_request[u.w]], q_task[w_request[u.w]], q_cause[w_request[u.w]], q_trace[w_request[u.w]],
             p_schemas[u.t], p_streams[w_stream[u.w]], p_types[u.t], p_actor, writer, u.d
        FROM unnest(positions, versions, e_id, e_write, e_type, e_data) u (p, v, id, w, t, d) WHERE u.v > 0;
      EXIT;
    EXCEPTION WHEN unique_violation THEN                          -- an id is known after all: look the ids up and decide again
      IF tries > 4 THEN RAISE; END IF;
      looked_up := true;
      SELECT array_agg(u.o::int), array_agg(n.stream_id), array_agg(n.version), array_agg(n.position)
        INTO known_event, known_stream, known_version, known_position
        FROM unnest(e_id) WITH ORDINALITY u (id, o) JOIN events n ON n.event_id = u.id;
    END;
  END LOOP;

  IF latest <> advanced OR closed <> was_closed THEN             -- take back what refused requests had advanced, close what has ended
    UPDATE streams t SET version = u.now, closed_at = CASE WHEN u.closed THEN coalesce(t.closed_at, clock_timestamp()) END
      FROM unnest(p_streams, advanced, latest, was_closed, closed) u (name, was, now, was_closed, closed)
     WHERE t.stream_id = u.name AND u.now > 0 AND (u.now <> u.was OR u.closed <> u.was_closed);
    UPDATE streams t SET run_id = q_run[w_request[u.w]], kind = w_kind[u.w] FROM unnest(p_streams, opener, advanced, added) u (name, w, was, added)
     WHERE reopened AND t.stream_id = u.name AND u.was = u.added;
    DELETE FROM streams t USING unnest(p_streams, advanced, latest) u (name, was, now)
     WHERE t.stream_id = u.name AND u.now = 0 AND u.was > 0;      -- a refused first append leaves no empty stream
  END IF;
  r_versions := versions; r_positions := positions; r_special := CASE WHEN refused THEN special END;
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION es.append FROM public;

-- The answer to a request some of whose event ids are in the log: duplicate, partial, or NULL when none is.
CREATE FUNCTION es.known_answer(
  p_first_event int, p_last_event int, p_first_write int, p_last_write int,
  p_streams text[], w_stream int[], w_events int[],
  known_event int[], known_stream text[], known_version bigint[], known_position bigint[]
) RETURNS jsonb LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, es, pg_temp AS $$
  WITH placed AS (
    SELECT w, p_first_event + sum(w_events[w]) OVER (ORDER BY w) - w_events[w] AS first FROM generate_series(p_first_write, p_last_write) w),
  found AS (
    SELECT n.event, n.version, n.position, n.stream = p_streams[w_stream[(SELECT max(w) FROM placed WHERE first <= n.event)]] AS fits
      FROM unnest(known_event, known_stream, known_version, known_position) n (event, stream, version, position)
     WHERE n.event BETWEEN p_first_event AND p_last_event)
  SELECT CASE
    WHEN count(*) = 0 THEN NULL
    WHEN count(*) FILTER (WHERE fits) = p_last_event - p_first_event + 1 THEN
      jsonb_build_object('status', 'duplicate', 'versions', jsonb_agg(version ORDER BY event), 'positions', jsonb_agg(position ORDER BY event))
    ELSE jsonb_build_object('status', 'partial') END
  FROM found
$$;
REVOKE ALL ON FUNCTION es.known_answer FROM public;
