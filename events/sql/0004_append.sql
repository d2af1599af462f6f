-- es.append: the gate. Appends a batch of independent requests, each of them atomic and idempotent.
--
-- One pass locks and advances all streams in sorted order, a loop over arrays decides every request, one INSERT writes all events,
-- and what the loop refused is corrected. The arrays refer to each other by index, from 1:
--   p_streams     distinct, ascending
--   writes w_*    in request order: request, stream, expected version (-1: any), number of events, agent kind to open the stream with
--   requests q_*  occurred_us, run, task, cause, trace
--   types         distinct pairs of p_types and p_schemas
--   events e_*    in write order: type, id, data
-- An empty array stands for one that is all NULL (w_kind, q_run, q_task, q_cause, q_trace). About money, all of which may be left out:
--   p_scope, p_soft, p_hard   distinct scopes with limits
--   binds b_*                 in write order: write, scope with limits; the write opens its stream (w_expected is 0)
--   limits l_*                in request order: request, scope with limits
--   p_held                    distinct reservations, those that are settled first and ascending
--   reservations r_*          in request order, one at most for each: request, reservation, amount
--   settlements t_*           in request order: request, reservation, actual (NULL gives the money back)
-- Amounts are micro-USD. Scopes are bound to a stream when it is opened, a model call reserves its worst price in the append that records it, and
-- settles its real one. A settlement is about a reservation made on the stream of its request's first write, where spend/<task> stands for
-- task/<task>; any other is left alone.
--
-- Answers with version and position of each event (version 0: refused) and one json object for each request that is not simply ok:
--   {"request", "status": "duplicate", "versions", "positions", "warned"?}   all its ids are known: the original answer
--   {"request", "status": "conflict", "stream", "version", "closed"}
--   {"request", "status": "partial"}                      some ids are known, or known on another stream
--   {"request", "status": "denied", "reason"}
--   {"request", "status": "malformed", "reason"}
--   {"request", "status": "over_budget", "scope", "limit", "used", "needed"}
--   {"request", "status": "unreserved", "stream"}         a model call on a stream with scopes, without a reservation of its own
--   {"request", "status": "reserved", "stream", "reason"} the reservation is there already
--   {"request", "status": "warned", "warned"}             written, but these scopes of the first write's stream are over their soft limit
--
-- A list counts from 1 in one dimension: it is looked at by number, x[1] … x[n], and written with unnest(), which goes by place, and a Postgres array
-- may begin at any number. Whoever passed one that begins at 0 had something else looked at than was written.
--
-- Whose run an event is of is what its stream says, also when its request names none. A request that names one
--   on run, task, alert   is of that of the request that opened the stream
--   on spend              is of that of the task beside which it stands, whoever opened it
--   on all others         goes together with a write to a stream of that run, as claims do with the call they are for; the stream stays of none
-- What stands beside a task, on spend, is for those who may write to the task's own stream. An event id that is known stands for the same event only
-- on the same stream and with the same type: ids follow from public facts, and nobody is to be told that an event is there which is another.
--
-- Locks are taken in the order: scopes that are new, by name; streams, by name; reservations, by id; budgets, by number.
--
-- A batch is first decided as if everything fitted, and charged to the budgets with one UPDATE, which says whether a limit could have been
-- passed or a warning be due at any moment of it, in any order. Only then is it decided again, exactly: request by request against
-- the rows as they were, and the UPDATE is repeated with the difference.

-- Says whether a grant covers a stream of this kind; p_except is a list like ',code,data,'. One expression without settings: the planner puts it in
-- place of the call.
CREATE FUNCTION es.is_covered(p_kind text, p_only text, p_except text) RETURNS boolean LANGUAGE sql IMMUTABLE
AS $$ SELECT (p_only IS NULL OR p_kind = p_only) AND (p_except = ',,' OR strpos(p_except, ',' || p_kind || ',') = 0) $$;
REVOKE ALL ON FUNCTION es.is_covered FROM public;

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

-- Gives the scopes of streams, as text, and says of each whether this login may not settle what was reserved there: it may where it may append.
CREATE FUNCTION es.reserved_elsewhere(p_writer text, p_streams text[], OUT scopes text[], OUT denied boolean[]) LANGUAGE sql STABLE
SET search_path = pg_catalog, es, pg_temp AS $$
  SELECT array_agg(z.scopes::text ORDER BY u.o),
         array_agg(u.name IS NOT NULL AND NOT EXISTS (
           SELECT FROM grants a
            WHERE a.role = p_writer AND starts_with(u.name, a.category || '/')
              AND es.is_covered(z.kind, a.kind, concat(',', array_to_string(a.except_kinds, ','), ','))) ORDER BY u.o)
    FROM unnest(p_streams) WITH ORDINALITY u (name, o) LEFT JOIN streams z ON z.stream_id = u.name
$$;
REVOKE ALL ON FUNCTION es.reserved_elsewhere FROM public;

CREATE FUNCTION es.append(
  p_streams text[],
  w_request int[], w_stream int[], w_expected bigint[], w_events int[], w_kind text[],
  q_occurred_us bigint[], q_run uuid[], q_task uuid[], q_cause uuid[], q_trace uuid[],
  p_types text[], p_schemas smallint[],
  e_type int[], e_id uuid[], e_data json[],
  p_actor text,
  p_scope text[] DEFAULT '{}', p_soft bigint[] DEFAULT '{}', p_hard bigint[] DEFAULT '{}',
  b_write int[] DEFAULT '{}', b_limit int[] DEFAULT '{}',
  l_request int[] DEFAULT '{}', l_limit int[] DEFAULT '{}',
  p_held uuid[] DEFAULT '{}',
  r_request int[] DEFAULT '{}', r_held int[] DEFAULT '{}', r_amount bigint[] DEFAULT '{}',
  t_request int[] DEFAULT '{}', t_held int[] DEFAULT '{}', t_actual bigint[] DEFAULT '{}'
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
  g record;
  g_prefix text[]; g_kind text[]; g_except text[]; g_opens boolean[];                  -- grants of this login
  prefix text; all_types boolean; closes boolean;                   -- whether they allow every type of the batch, and whether one of its types closes streams
  granted int[];                -- stream -> number of the grant that covers it; 0: none
  types_vary boolean := true;   -- false when every type of the batch is allowed on every stream of the batch
  type_allowed boolean[];       -- (grant, type) row by row
  type_closes boolean[];        -- NULL when no type of the batch closes anything
  added bigint[];               -- stream -> events of the whole batch
  opener int[];                 -- stream -> the write that opens it, if it is new
  s_run uuid[]; now_run uuid[]; -- stream -> its run
  w_run uuid[];                 -- write -> the run of its stream, where that is of one
  is_of_run boolean;            -- whether the request writes to a stream of its run
  ours text[];                  -- streams that were locked
  plain boolean;                -- no event needs a look of its own
  advanced bigint[];            -- stream -> version in the table after the locking pass
  was_closed boolean[]; closed boolean[];
  latest bigint[];              -- stream -> version after the requests decided so far
  versions bigint[]; positions bigint[]; e_write int[];
  known_event int[]; known_stream text[]; known_version bigint[]; known_position bigint[];
  looked_up boolean := false; reopened boolean := false;
  special jsonb[]; answer jsonb; refused boolean;
  tries int := 0;
  q int; w int; w0 int; s int; e int; e0 int; k int; v bigint;
  -- Money. What is called now_, used, soft, hard and set_ holds behind the requests accepted so far; what is called done_ is in the table.
  r_n int := cardinality(r_request); t_n int := cardinality(t_request); b_n int := cardinality(b_write); l_n int := cardinality(l_request);
  charging boolean := r_n + t_n > 0;
  money boolean;
  type_calls boolean[];         -- NULL when the batch begins no model call
  type_limits boolean[];        -- NULL when the batch changes no limit
  k_scope bigint[];             -- scope with limits -> its row
  f_scope bigint[]; f_new boolean[]; f_limit int[];    -- rows that may get limits, whether they were made here, and from which scope with limits
  s_scopes text[]; now_scopes text[];                  -- stream -> its scopes, as the text of an array; NULL: none
  w_scopes text[];              -- write -> the scopes it opens its stream with
  sets text[]; sets_n int;      -- distinct such texts
  set_charged boolean[]; done_charged boolean[];       -- set -> whether an amount above 0 is about it
  set_spent bigint[]; set_reserved bigint[]; set_freed bigint[]; done_spent bigint[] := '{}'; done_reserved bigint[] := '{}';
  settled_n int := 0;           -- the first so many of p_held are settled here
  t_counts boolean[];           -- settlement -> whether it is about a reservation of the stream it may settle on
  held_id uuid[]; held_amount bigint[]; held_stream text[]; held_run uuid[]; held_task uuid[]; held_since bigint[];   -- taken from the table
  else_scopes text[]; else_denied boolean[];           -- reservation -> scopes of its stream, if that is not in the batch, and whether it is taboo
  known_held uuid[];            -- reservations that were made elsewhere meanwhile
  held_was int[]; now_state int[];                     -- 0 unknown, 1 open, 2 given back, 3 settled
  now_amount bigint[]; now_set int[]; now_write int[]; -- now_write: the write it is made with here; 0: it is not
  reserves boolean := false; releases boolean := false;
  exact boolean := false;       -- a limit is near: requests are held against the limits one by one
  near boolean;
  a_scope bigint[]; a_name text[]; a_soft bigint[]; a_hard bigint[]; a_before bigint[];   -- rows of all charged sets, without this batch
  soft bigint[]; hard bigint[]; used bigint[];
  set_end int[]; set_row int[];                        -- set -> its rows, one set behind the other
  was_spent bigint[]; was_reserved bigint[]; was_freed bigint[]; was_used bigint[]; was_soft bigint[]; was_hard bigint[]; was_limit int[];
  was_state int[]; was_amount bigint[]; was_set int[]; was_write int[];
  r int; t0 int; b0 int; l0 int; next_r int; next_t int; next_b int; next_l int;
  scopes text; last_scopes text; last_set int; own boolean; x int; first_set int; charges boolean; amount bigint; warned text[];
  h int; i int; n int;
BEGIN
  IF array_ndims(p_streams) > 1 OR array_lower(p_streams, 1) <> 1 OR array_ndims(p_types) > 1 OR array_lower(p_types, 1) <> 1
     OR array_ndims(e_type) > 1 OR array_lower(e_type, 1) <> 1 THEN
    RAISE EXCEPTION 'es.append: a list counts from 1' USING ERRCODE = 'ES006';
  END IF;
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

  IF charging OR b_n + l_n > 0 THEN
    IF cardinality(r_held) <> r_n OR cardinality(r_amount) <> r_n OR cardinality(t_held) <> t_n OR cardinality(t_actual) <> t_n OR cardinality(b_limit) <> b_n
       OR cardinality(l_limit) <> l_n OR cardinality(p_soft) <> cardinality(p_scope) OR cardinality(p_hard) <> cardinality(p_scope) THEN
      RAISE EXCEPTION 'es.append: arrays do not fit together' USING ERRCODE = 'ES006';
    END IF;
    IF array_position(r_amount, NULL) > 0 OR 0 > ANY (r_amount || t_actual || p_soft || p_hard)
       OR 1000000000000000 < ANY (r_amount || t_actual || p_soft || p_hard) THEN
      RAISE EXCEPTION 'es.append: what should be an amount is none' USING ERRCODE = 'ES006';
    END IF;
    FOR k IN 1..b_n LOOP
      -- who may open other streams, agents among them, must not make a budget with limits of its own liking
      IF w_expected[b_write[k]] IS DISTINCT FROM 0 OR NOT starts_with(p_streams[w_stream[b_write[k]]], 'task/') THEN
        RAISE EXCEPTION 'es.append: scopes are bound when a task stream is opened' USING ERRCODE = 'ES006';
      END IF;
    END LOOP;
    FOR k IN 1..t_n LOOP settled_n := greatest(settled_n, t_held[k]); END LOOP;
    FOR k IN 2..settled_n LOOP
      IF p_held[k] <= p_held[k - 1] THEN
        RAISE EXCEPTION 'es.append: reservations to settle must be distinct and ascending' USING ERRCODE = 'ES006';
      END IF;
    END LOOP;
  END IF;
  IF 'ModelCallStarted' = ANY (p_types) THEN
    FOR k IN 1..types_n LOOP type_calls[k] := p_types[k] = 'ModelCallStarted'; END LOOP;
  END IF;
  IF l_n > 0 OR 'BudgetChanged' = ANY (p_types) THEN
    FOR k IN 1..types_n LOOP type_limits[k] := p_types[k] = 'BudgetChanged'; END LOOP;
  END IF;

  -- Rights: one grant per login and category. Those that can matter: streams are sorted, and 0 is the character behind /.
  prefix := split_part(p_streams[1], '/', 1) || '/';
  IF starts_with(p_streams[1], prefix) AND starts_with(p_streams[streams_n], prefix) THEN   -- the common case: one category
    SELECT ARRAY[kind], ARRAY[concat(',', array_to_string(except_kinds, ','), ',')], ARRAY[opens], p_types <@ types, p_types && closing
      INTO g_kind, g_except, g_opens, all_types, closes FROM grants WHERE role = writer AND category = rtrim(prefix, '/');
    IF FOUND THEN g_prefix := ARRAY[prefix]; granted := array_fill(1, ARRAY[streams_n]); types_vary := NOT all_types; END IF;
  END IF;
  IF granted IS NULL THEN
    SELECT array_agg(category || '/'), array_agg(kind), array_agg(concat(',', array_to_string(except_kinds, ','), ',')), array_agg(opens),
           bool_or(p_types && closing)
      INTO g_prefix, g_kind, g_except, g_opens, closes
      FROM grants WHERE role = writer AND category || '/' <= p_streams[streams_n] AND category || '0' > p_streams[1];
    IF g_prefix IS NULL AND NOT EXISTS (SELECT FROM grants WHERE role = writer) THEN
      RAISE EXCEPTION 'login % has no grant to append', writer USING ERRCODE = '42501';
    END IF;
    granted := array_fill(0, ARRAY[streams_n]);
    FOR s IN 1..streams_n LOOP
      FOR k IN 1..coalesce(cardinality(g_prefix), 0) LOOP
        IF starts_with(p_streams[s], g_prefix[k]) THEN granted[s] := k; EXIT; END IF;
      END LOOP;
    END LOOP;
  END IF;
  IF types_vary THEN
    SELECT array_agg(t.name = ANY (a.types) ORDER BY array_position(g_prefix, a.category || '/'), t.o) INTO type_allowed
      FROM grants a, unnest(p_types) WITH ORDINALITY t (name, o) WHERE a.role = writer AND a.category || '/' = ANY (g_prefix);
  END IF;
  IF closes THEN
    SELECT array_agg(EXISTS (SELECT FROM grants a WHERE a.role = writer AND t.name = ANY (a.closing)) ORDER BY t.o) INTO type_closes
      FROM unnest(p_types) WITH ORDINALITY t (name, o);
  END IF;

  IF 'spend/' = ANY (g_prefix) THEN
    FOR s IN 1..streams_n LOOP
      IF starts_with(p_streams[s], 'spend/') AND NOT EXISTS (
           SELECT FROM streams t, grants a
            WHERE t.stream_id = 'task/' || substr(p_streams[s], 7) AND a.role = writer AND a.category = 'task'
              AND es.is_covered(t.kind, a.kind, concat(',', array_to_string(a.except_kinds, ','), ','))) THEN
        IF requests > 1 AND 'task/' || substr(p_streams[s], 7) = ANY (p_streams) THEN
          RAISE EXCEPTION 'es.append: a task may be opened here, and something is beside it' USING ERRCODE = 'ES007';   -- the client takes the batch apart
        END IF;
        granted[s] := 0;
      END IF;
    END LOOP;
  END IF;

  -- Scopes that nobody has heard of get their rows first, see es.make_scopes.
  IF b_n + l_n > 0 THEN
    SELECT m.k_scope, m.f_scope, m.f_new INTO k_scope, f_scope, f_new FROM es.make_scopes(p_scope, p_soft, p_hard) m;
    FOR g IN SELECT b.w, array_agg(k_scope[b.l] ORDER BY b.o)::text AS scopes FROM unnest(b_write, b_limit) WITH ORDINALITY b (w, l, o) GROUP BY b.w LOOP
      w_scopes[g.w] := g.scopes;
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
    INSERT INTO streams AS t (stream_id, version, run_id, kind, scopes)
    SELECT u.name, u.n,
           CASE WHEN starts_with(u.name, 'spend/') THEN (SELECT z.run_id FROM streams z WHERE z.stream_id = 'task/' || substr(u.name, 7))
                WHEN u.name ~ '^(run|task|alert)/' THEN coalesce(q_run[w_request[opener[u.o]]], (SELECT z.run_id FROM streams z WHERE z.stream_id = u.name)) END,
           w_kind[opener[u.o]], w_scopes[opener[u.o]]::bigint[]
      FROM unnest(p_streams, added) WITH ORDINALITY u (name, n, o)
     WHERE granted[u.o] > 0
       AND (g_opens[granted[u.o]]
            OR EXISTS (SELECT FROM streams z WHERE z.stream_id = u.name AND es.is_covered(z.kind, g_kind[granted[u.o]], g_except[granted[u.o]])))
     ORDER BY u.o
    ON CONFLICT (stream_id) DO UPDATE SET version = t.version + excluded.version
    RETURNING stream_id, version, closed_at, CASE WHEN charging OR type_calls IS NOT NULL THEN t.scopes::text END AS scopes, t.run_id AS run)
  SELECT array_agg(stream_id), array_agg(version), array_agg(closed_at IS NOT NULL), array_agg(scopes), array_agg(run)
    INTO ours, advanced, was_closed, s_scopes, s_run FROM touched;
  IF ours IS DISTINCT FROM p_streams THEN                         -- some were left out, or they came in another order: align the arrays again
    SELECT array_agg(CASE WHEN t.name IS NULL THEN 0 ELSE granted[u.o] END ORDER BY u.o),
           array_agg(coalesce(t.version, 0) ORDER BY u.o), array_agg(coalesce(t.closed, false) ORDER BY u.o), array_agg(t.scopes ORDER BY u.o),
           array_agg(t.run ORDER BY u.o)
      INTO granted, advanced, was_closed, s_scopes, s_run
      FROM unnest(p_streams) WITH ORDINALITY u (name, o)
      LEFT JOIN unnest(ours, advanced, was_closed, s_scopes, s_run) t (name, version, closed, scopes, run) ON t.name = u.name;
  END IF;
  IF w_scopes IS NULL AND array_remove(s_scopes, NULL) = '{}' THEN type_calls := NULL; END IF;   -- nothing that happens here costs anything
  money := charging OR b_n + l_n > 0 OR type_calls IS NOT NULL OR type_limits IS NOT NULL;
  plain := NOT (0 = ANY (granted) OR types_vary OR type_closes IS NOT NULL);

  -- Readers' watermark: every position this transaction draws is above the number it locks, and whoever sees the lock reads no further.
  -- The order is (a) read the sequence, (b) take the lock, (c) draw positions.
  PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | (last_value - (NOT is_called)::int)) FROM event_position;

  IF charging THEN
    sets := '{}'; sets_n := 0; set_charged := '{}'; held_was := array_fill(0, ARRAY[cardinality(p_held)]);
    IF l_n > 0 THEN                                               -- rows whose limits change are locked together with the others
      sets := ARRAY[(SELECT array_agg(DISTINCT k_scope[x])::text FROM unnest(l_limit) x)]; sets_n := 1; set_charged := '{true}';
    END IF;
    PERFORM es.set_aside(p_streams || ARRAY(SELECT 'task/' || substr(x, 7) FROM unnest(p_streams) x WHERE starts_with(x, 'spend/')), p_held);
    IF settled_n > 0 THEN                                         -- what is to be settled is taken away; what stays is put back below
      WITH taken AS (
        DELETE FROM reservations x USING unnest(p_held[1:settled_n]) u (id) WHERE x.reservation_id = u.id
        RETURNING u.id, CASE WHEN x.released_at IS NULL THEN 1 ELSE 2 END AS state, x.amount, x.stream_id, x.run_id, x.task_id, x.since_us)
      SELECT array_agg(id), array_agg(state), array_agg(taken.amount), array_agg(stream_id), array_agg(run_id), array_agg(task_id), array_agg(since_us)
        INTO held_id, held_was, held_amount, held_stream, held_run, held_task, held_since FROM taken;
      IF held_id IS DISTINCT FROM p_held[1:settled_n] THEN        -- some are unknown, or they came in another order: align
        SELECT array_agg(coalesce(x.state, 0) ORDER BY u.o), array_agg(x.amount ORDER BY u.o), array_agg(x.stream ORDER BY u.o),
               array_agg(x.run ORDER BY u.o), array_agg(x.task ORDER BY u.o), array_agg(x.since ORDER BY u.o)
          INTO held_was, held_amount, held_stream, held_run, held_task, held_since
          FROM unnest(p_held) WITH ORDINALITY u (id, o)
          LEFT JOIN unnest(held_id, held_was, held_amount, held_stream, held_run, held_task, held_since) x (id, state, amount, stream, run, task, since)
                 ON x.id = u.id;
      END IF;
    END IF;
  END IF;

  LOOP
    tries := tries + 1; refused := false; special := '{}'; w := 0; e := 0;
    IF charging THEN
      now_state := held_was; now_amount := held_amount; now_write := array_fill(0, ARRAY[cardinality(p_held)]); now_set := now_write;
      set_spent := array_fill(0::bigint, ARRAY[sets_n]); set_reserved := set_spent; set_freed := set_spent;
      used := a_before; soft := a_soft; hard := a_hard; reserves := false; releases := false; last_scopes := NULL; last_set := 0;
    END IF;
    IF money THEN next_r := 1; next_t := 1; next_b := 1; next_l := 1; now_scopes := s_scopes; END IF;
    IF f_scope IS NOT NULL THEN f_limit := array_fill(0, ARRAY[cardinality(f_scope)]); END IF;
    closed := was_closed; versions := array_fill(0::bigint, ARRAY[events_n]); e_write := array_fill(1, ARRAY[events_n]);
    latest := advanced; now_run := s_run;
    FOR s IN 1..streams_n LOOP
      IF granted[s] > 0 THEN latest[s] := advanced[s] - added[s]; END IF;
    END LOOP;

    FOR q IN 1..requests LOOP
      answer := NULL; w0 := w + 1; e0 := e + 1; is_of_run := q_run[q] IS NULL;
      LOOP
        w := w + 1; s := w_stream[w]; e := e + w_events[w];
        IF w_request[w] <> q OR w_events[w] < 1 OR e > events_n THEN
          RAISE EXCEPTION 'es.append: request % does not fit', q USING ERRCODE = 'ES006';
        END IF;
        IF answer IS NULL AND (closed[s] OR (w_expected[w] >= 0 AND w_expected[w] <> latest[s])) THEN
          answer := jsonb_build_object('status', 'conflict', 'stream', p_streams[s], 'version', latest[s], 'closed', closed[s]);
        END IF;
        IF p_streams[s] ~ '^(run|task|alert|spend)/' THEN
          IF latest[s] = 0 AND NOT starts_with(p_streams[s], 'spend/') THEN
            now_run[s] := q_run[q];
            IF q_run[q] IS NULL AND granted[s] > 0 AND starts_with(p_streams[s], 'run/') THEN   -- alone, it is refused by the table
              RAISE EXCEPTION 'es.append: opening a run needs the run''s id' USING ERRCODE = 'ES007';
            END IF;
          END IF;
          is_of_run := true; w_run[w] := now_run[s];
          IF answer IS NULL AND q_run[q] IS NOT NULL AND now_run[s] IS DISTINCT FROM q_run[q] THEN
            answer := jsonb_build_object('status', 'malformed', 'reason',
                                         format('%s is of run %s, and its events cannot be of run %s', p_streams[s],
                                                coalesce(now_run[s]::text, 'none'), q_run[q]));
          END IF;
        END IF;
        EXIT WHEN w = writes OR w_request[w + 1] <> q;
      END LOOP;
      IF answer IS NULL AND NOT is_of_run THEN
        answer := jsonb_build_object('status', 'malformed', 'reason',
                                     format('%s is of no run, and its events are of run %s only beside events of that run', p_streams[s], q_run[q]));
      END IF;
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
      IF money THEN
        r := 0; t0 := next_t; charges := false; own := false;
        IF r_request[next_r] = q THEN r := next_r; next_r := next_r + 1; END IF;
        WHILE t_request[next_t] = q LOOP next_t := next_t + 1; END LOOP;
        IF f_scope IS NOT NULL THEN
          b0 := next_b; l0 := next_l;
          WHILE b_write[next_b] <= w LOOP next_b := next_b + 1; END LOOP;
          WHILE l_request[next_l] = q LOOP next_l := next_l + 1; END LOOP;
        END IF;
        IF r > 0 OR next_t > t0 THEN                              -- which rows it is about, whatever becomes of it
          s := w_stream[w0]; scopes := now_scopes[s];
          IF latest[s] = 0 THEN scopes := w_scopes[w0]; END IF;
          IF scopes IS DISTINCT FROM last_scopes THEN
            last_scopes := scopes; last_set := array_position(sets, scopes);
            IF scopes IS NULL THEN last_set := 0; END IF;
            IF last_set IS NULL THEN
              sets_n := sets_n + 1; last_set := sets_n; sets[sets_n] := scopes;
              set_charged[sets_n] := false; set_spent[sets_n] := 0; set_reserved[sets_n] := 0; set_freed[sets_n] := 0;
            END IF;
          END IF;
          first_set := last_set;
          IF r > 0 THEN charges := r_amount[r] > 0; END IF;
          FOR k IN t0..next_t - 1 LOOP
            h := t_held[k]; i := first_set;
            IF t_actual[k] > 0 THEN charges := true; END IF;
            t_counts[k] := h = r_held[r] OR regexp_replace(p_streams[s], '^spend/', 'task/')
                             = CASE WHEN now_write[h] > 0 THEN p_streams[w_stream[now_write[h]]] ELSE held_stream[h] END;
            CONTINUE WHEN t_counts[k] IS NOT TRUE;
            IF held_stream[h] <> p_streams[s] AND now_write[h] = 0 AND h IS DISTINCT FROM r_held[r] THEN   -- one of that id is refused below
              x := array_position(p_streams, held_stream[h]);
              IF x > 0 AND granted[x] > 0 THEN
                scopes := now_scopes[x];
              ELSE
                IF else_scopes IS NULL THEN
                  SELECT m.scopes, m.denied INTO else_scopes, else_denied FROM es.reserved_elsewhere(writer, held_stream) m;
                END IF;
                scopes := else_scopes[h];
                IF else_denied[h] THEN
                  answer := jsonb_build_object('status', 'denied', 'reason', format('reservation %s of %s is not for %s', p_held[h], held_stream[h], writer));
                END IF;
              END IF;
              i := array_position(sets, scopes);
              IF scopes IS NULL THEN i := 0; END IF;
              IF i IS NULL THEN
                sets_n := sets_n + 1; i := sets_n; sets[sets_n] := scopes;
                set_charged[sets_n] := false; set_spent[sets_n] := 0; set_reserved[sets_n] := 0; set_freed[sets_n] := 0;
              END IF;
            END IF;
            IF now_write[h] = 0 THEN now_set[h] := i; END IF;
            IF (now_amount[h] > 0 OR t_actual[k] > 0) AND now_set[h] > 0 THEN set_charged[now_set[h]] := true; END IF;
            IF r > 0 AND h = r_held[r] THEN own := true; END IF;
          END LOOP;
          IF charges AND first_set > 0 THEN set_charged[first_set] := true; END IF;
        END IF;
      END IF;
      IF type_calls IS NOT NULL AND answer IS NULL AND (r = 0 OR e > e0) THEN     -- no model call on a stream with scopes without the money for it
        k := e0;
        FOR x IN w0..w LOOP
          n := 0;
          FOR y IN k..k + w_events[x] - 1 LOOP
            IF type_calls[e_type[y]] THEN n := n + 1; END IF;
          END LOOP;
          k := k + w_events[x]; s := w_stream[x];
          IF n > 0 AND (n > 1 OR x > w0 OR r = 0) AND (CASE WHEN latest[s] = 0 THEN w_scopes[x] ELSE now_scopes[s] END) IS NOT NULL THEN
            answer := jsonb_build_object('status', 'unreserved', 'stream', p_streams[s]);
          END IF;
        END LOOP;
      END IF;
      IF money THEN
        IF answer IS NULL AND type_limits IS NOT NULL THEN        -- limits and the events that say so, one for one
          k := e0; n := next_l - l0;
          FOR x IN w0..w LOOP
            FOR y IN k..k + w_events[x] - 1 LOOP
              IF type_limits[e_type[y]] THEN
                n := n - 1;
                IF NOT p_streams[w_stream[x]] = ANY (SELECT 'budget/' || p_scope[l_limit[z]] FROM generate_series(l0, next_l - 1) z) THEN n := -1; END IF;
              END IF;
              EXIT WHEN n < 0;
            END LOOP;
            EXIT WHEN n < 0;
            k := k + w_events[x];
          END LOOP;
          IF n <> 0 OR (SELECT count(DISTINCT p_scope[l_limit[z]]) FROM generate_series(l0, next_l - 1) z) < next_l - l0 THEN
            answer := jsonb_build_object('status', 'malformed', 'reason', 'a limit and the BudgetChanged in budget/<scope> that says so go together');
          END IF;
        END IF;
        IF r > 0 AND answer IS NULL AND (now_state[r_held[r]] IN (1, 2) OR p_held[r_held[r]] = ANY (known_held)) THEN
          answer := jsonb_build_object('status', 'reserved', 'stream', p_streams[w_stream[w0]], 'reason', p_held[r_held[r]]);
        END IF;

        IF answer IS NULL THEN
          IF exact AND r > 0 THEN
            was_spent := set_spent; was_reserved := set_reserved; was_freed := set_freed; was_used := used; was_soft := soft; was_hard := hard;
            was_limit := f_limit; was_state := now_state; was_amount := now_amount; was_set := now_set; was_write := now_write;
          END IF;
          IF f_scope IS NOT NULL THEN
            FOR k IN b0..next_b - 1 LOOP                          -- a new scope has the limits of whoever is the first to bind a stream to it
              i := array_position(f_scope, k_scope[b_limit[k]]);
              IF f_new[i] AND f_limit[i] = 0 THEN f_limit[i] := b_limit[k]; END IF;
            END LOOP;
            FOR k IN l0..next_l - 1 LOOP
              f_limit[array_position(f_scope, k_scope[l_limit[k]])] := l_limit[k];
            END LOOP;
            IF exact AND (next_b > b0 OR next_l > l0) THEN
              FOR x IN 1..cardinality(f_scope) LOOP
                i := array_position(a_scope, f_scope[x]);
                IF i > 0 AND f_limit[x] > 0 THEN soft[i] := p_soft[f_limit[x]]; hard[i] := p_hard[f_limit[x]]; END IF;
              END LOOP;
            END IF;
          END IF;
          FOR round IN 1..2 LOOP                                  -- settle, reserve, then settle what was reserved just now
            FOR k IN t0..next_t - 1 LOOP
              h := t_held[k];
              CONTINUE WHEN t_counts[k] IS NOT TRUE OR (own AND (round = 2) <> (h = r_held[r]));
              IF now_state[h] = 1 THEN
                amount := now_amount[h];
              ELSIF now_state[h] = 2 AND t_actual[k] >= 0 THEN
                amount := 0;
              ELSE
                CONTINUE;
              END IF;
              i := now_set[h];
              IF t_actual[k] IS NULL THEN v := 0; now_state[h] := 2; releases := true; ELSE v := t_actual[k]; now_state[h] := 3; END IF;
              CONTINUE WHEN i = 0;
              set_spent[i] := set_spent[i] + v; set_reserved[i] := set_reserved[i] - amount; set_freed[i] := set_freed[i] + amount;
              IF exact AND (v > 0 OR amount > 0) THEN
                FOR y IN coalesce(set_end[i - 1], 0) + 1..set_end[i] LOOP used[set_row[y]] := used[set_row[y]] + v - amount; END LOOP;
              END IF;
            END LOOP;
            EXIT WHEN r = 0 OR round = 2;
            h := r_held[r]; amount := r_amount[r];
            now_state[h] := 1; now_amount[h] := amount; now_set[h] := first_set; now_write[h] := w0; reserves := true;
            IF first_set > 0 THEN set_reserved[first_set] := set_reserved[first_set] + amount; END IF;
            IF exact AND first_set > 0 AND amount > 0 THEN
              FOR y IN coalesce(set_end[first_set - 1], 0) + 1..set_end[first_set] LOOP
                i := set_row[y];
                IF answer IS NULL AND used[i] + amount > hard[i] THEN
                  answer := jsonb_build_object('status', 'over_budget', 'scope', a_name[i], 'limit', hard[i], 'used', used[i], 'needed', amount);
                END IF;
                used[i] := used[i] + amount;
              END LOOP;
            END IF;
            EXIT WHEN answer IS NOT NULL OR NOT own;
          END LOOP;
          IF answer IS NOT NULL THEN
            set_spent := was_spent; set_reserved := was_reserved; set_freed := was_freed; used := was_used; soft := was_soft; hard := was_hard;
            f_limit := was_limit; now_state := was_state; now_amount := was_amount; now_set := was_set; now_write := was_write;
          ELSIF w_scopes IS NOT NULL THEN
            FOR x IN w0..w LOOP
              IF latest[w_stream[x]] = 0 THEN now_scopes[w_stream[x]] := w_scopes[x]; END IF;
            END LOOP;
          END IF;
        END IF;
        IF exact AND charges AND first_set > 0 AND (answer IS NULL OR answer->>'status' = 'duplicate') THEN
          warned := '{}';
          FOR y IN coalesce(set_end[first_set - 1], 0) + 1..set_end[first_set] LOOP
            IF used[set_row[y]] > soft[set_row[y]] THEN warned := warned || a_name[set_row[y]]; END IF;
          END LOOP;
          IF warned <> '{}' AND answer IS NULL THEN
            special := special || jsonb_build_object('request', q, 'status', 'warned', 'warned', warned);
          ELSIF warned <> '{}' THEN
            answer := answer || jsonb_build_object('warned', warned);
          END IF;
        END IF;
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
    IF e <> events_n OR w <> writes OR (money AND (next_r <= r_n OR next_t <= t_n OR next_b <= b_n OR next_l <= l_n)) THEN
      RAISE EXCEPTION 'es.append: arrays do not fit together' USING ERRCODE = 'ES006';
    END IF;
    -- With an exact expected version the unique index is check enough; ids are looked up only when the answer could depend on them.
    IF (refused OR -1 = ANY (w_expected)) AND NOT looked_up THEN
      looked_up := true;
      IF (SELECT count(DISTINCT x) FROM unnest(e_id) x) < events_n THEN
        RAISE EXCEPTION 'es.append: one event id twice in a call' USING ERRCODE = 'ES007';   -- the client takes the batch apart
      END IF;
      SELECT array_agg(u.o::int), array_agg(CASE WHEN n.type = p_types[e_type[u.o]] THEN n.stream_id END), array_agg(n.version), array_agg(n.position)
        INTO known_event, known_stream, known_version, known_position
        FROM unnest(e_id) WITH ORDINALITY u (id, o) JOIN events n ON n.event_id = u.id;
      IF known_event IS NOT NULL THEN CONTINUE; END IF;
    END IF;
    IF refused AND r_n > 0 AND known_held IS NULL THEN            -- what is reserved already is said to be that, not too much
      known_held := ARRAY(SELECT x.reservation_id FROM reservations x WHERE x.reservation_id = ANY (p_held));
      IF known_held <> '{}' THEN CONTINUE; END IF;
    END IF;

    -- Charge the rows. They are touched as late as can be, in the order of their numbers, and stay locked until the commit.
    IF charging AND true = ANY (set_charged)
       AND (set_spent, set_reserved, set_charged) IS DISTINCT FROM (done_spent, done_reserved, done_charged) THEN
      WITH change AS MATERIALIZED (
        SELECT x.id, sum(u.spent - coalesce(u.done_spent, 0))::bigint AS spent, sum(u.reserved - coalesce(u.done_reserved, 0))::bigint AS reserved,
               sum(u.freed)::bigint AS freed
          FROM unnest(sets, set_charged, set_spent, set_reserved, set_freed, done_spent, done_reserved)
                 u (ids, charged, spent, reserved, freed, done_spent, done_reserved), unnest(u.ids::bigint[]) x (id)
         WHERE u.charged GROUP BY x.id ORDER BY x.id),
      changed AS (
        UPDATE budgets b SET spent = b.spent + c.spent, reserved = b.reserved + c.reserved FROM change c WHERE b.scope_id = c.id
        RETURNING b.spent + b.reserved + c.freed > least(b.soft, b.hard) AS near)
      SELECT bool_or(changed.near) INTO near FROM changed;
      done_spent := set_spent; done_reserved := set_reserved;
      IF set_charged IS DISTINCT FROM done_charged AND (exact OR near OR f_scope IS NOT NULL) THEN   -- somebody may not fit, or is to be warned
        exact := true; done_charged := set_charged;
        SELECT array_agg(b.scope_id ORDER BY b.scope_id), array_agg(b.scope ORDER BY b.scope_id), array_agg(b.soft ORDER BY b.scope_id),
               array_agg(b.hard ORDER BY b.scope_id), array_agg(b.spent + b.reserved - c.added ORDER BY b.scope_id)
          INTO a_scope, a_name, a_soft, a_hard, a_before
          FROM (SELECT x.id, sum(u.spent + u.reserved)::bigint AS added
                  FROM unnest(sets, set_charged, set_spent, set_reserved) u (ids, charged, spent, reserved), unnest(u.ids::bigint[]) x (id)
                 WHERE u.charged GROUP BY x.id) c JOIN budgets b ON b.scope_id = c.id;
        SELECT array_agg(array_position(a_scope, x.id) ORDER BY u.o, x.o) INTO set_row
          FROM unnest(sets) WITH ORDINALITY u (ids, o), unnest(u.ids::bigint[]) WITH ORDINALITY x (id, o);
        SELECT array_agg(c.n ORDER BY c.o) INTO set_end
          FROM (SELECT u.o, sum(cardinality(u.ids::bigint[])) OVER (ORDER BY u.o) AS n FROM unnest(sets) WITH ORDINALITY u (ids, o)) c;
        CONTINUE;
      END IF;
      done_charged := set_charged;
    END IF;

    BEGIN
      IF reserves THEN
        INSERT INTO reservations (reservation_id, stream_id, run_id, task_id, amount, since_us, released_at)
        SELECT u.id, p_streams[w_stream[u.made]], coalesce(q_run[w_request[u.made]], w_run[u.made]), q_task[w_request[u.made]], u.amount,
               q_occurred_us[w_request[u.made]], CASE u.state WHEN 2 THEN clock_timestamp() END
          FROM unnest(p_held, now_state, now_write, now_amount) u (id, state, made, amount) WHERE u.made > 0 AND u.state < 3;
      END IF;
      IF 1 = ANY (now_state[1:settled_n]) OR 2 = ANY (now_state[1:settled_n]) THEN      -- put back
        INSERT INTO reservations (reservation_id, stream_id, run_id, task_id, amount, since_us, released_at)
        SELECT u.id, u.stream, u.run, u.task, u.amount, u.since, CASE u.state WHEN 2 THEN clock_timestamp() END
          FROM unnest(p_held, now_state, now_write, held_amount, held_stream, held_run, held_task, held_since)
                 u (id, state, made, amount, stream, run, task, since)
         WHERE u.state IN (1, 2) AND u.made = 0;
      END IF;
      FOR k IN 1..events_n LOOP positions[k] := nextval('es.event_position'); END LOOP;
      INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor,
                          writer, data)
      SELECT u.p, u.v, q_occurred_us[w_request[u.w]], u.id, coalesce(q_run[w_request[u.w]], w_run[u.w]), q_task[w_request[u.w]],
             q_cause[w_request[u.w]], q_trace[w_request[u.w]],
             p_schemas[u.t], p_streams[w_stream[u.w]], p_types[u.t], p_actor, writer, u.d
        FROM unnest(positions, versions, e_id, e_write, e_type, e_data) u (p, v, id, w, t, d) WHERE u.v > 0;
      EXIT;
    EXCEPTION WHEN unique_violation THEN                          -- an id is known after all: look the ids up and decide again
      IF tries > 6 THEN RAISE; END IF;
      looked_up := true;
      SELECT array_agg(u.o::int), array_agg(CASE WHEN n.type = p_types[e_type[u.o]] THEN n.stream_id END), array_agg(n.version), array_agg(n.position)
        INTO known_event, known_stream, known_version, known_position
        FROM unnest(e_id) WITH ORDINALITY u (id, o) JOIN events n ON n.event_id = u.id;
      IF r_n > 0 THEN known_held := ARRAY(SELECT x.reservation_id FROM reservations x WHERE x.reservation_id = ANY (p_held)); END IF;
    END;
  END LOOP;

  IF latest <> advanced OR closed <> was_closed THEN             -- take back what refused requests had advanced, close what has ended
    UPDATE streams t SET version = u.now, closed_at = CASE WHEN u.closed THEN coalesce(t.closed_at, clock_timestamp()) END
      FROM unnest(p_streams, advanced, latest, was_closed, closed) u (name, was, now, was_closed, closed)
     WHERE t.stream_id = u.name AND u.now > 0 AND (u.now <> u.was OR u.closed <> u.was_closed);
    UPDATE streams t SET run_id = w_run[u.w], kind = w_kind[u.w], scopes = w_scopes[u.w]::bigint[]
      FROM unnest(p_streams, opener, advanced, added) u (name, w, was, added)
     WHERE reopened AND t.stream_id = u.name AND u.was = u.added;
    DELETE FROM streams t USING unnest(p_streams, advanced, latest) u (name, was, now)
     WHERE t.stream_id = u.name AND u.now = 0 AND u.was > 0;      -- a refused first append leaves no empty stream
    IF closed <> was_closed THEN                                  -- what is reserved when a stream ends is for the sweep to find
      PERFORM es.set_aside(ARRAY(SELECT u.name FROM unnest(p_streams, was_closed, closed) u (name, was, now) WHERE u.was <> u.now), NULL);
    END IF;
  END IF;
  IF f_scope IS NOT NULL THEN
    UPDATE budgets b SET soft = p_soft[u.k], hard = p_hard[u.k] FROM unnest(f_scope, f_limit) u (id, k)
     WHERE b.scope_id = u.id AND u.k > 0 AND (b.soft, b.hard) IS DISTINCT FROM (p_soft[u.k], p_hard[u.k]);
    DELETE FROM budgets b USING unnest(f_scope, f_new, f_limit) u (id, new, k) WHERE u.new AND u.k = 0 AND b.scope_id = u.id;
  END IF;
  IF releases THEN                                                -- a price this late will not come any more
    DELETE FROM reservations WHERE reservation_id IN (
      SELECT x.reservation_id FROM reservations x WHERE x.released_at < clock_timestamp() - interval '30 days' LIMIT 100 FOR UPDATE SKIP LOCKED);
  END IF;
  r_versions := versions; r_positions := positions; r_special := CASE WHEN special <> '{}' THEN to_jsonb(special) END;
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION es.append FROM public;
