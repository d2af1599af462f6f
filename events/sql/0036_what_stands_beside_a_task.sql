-- What stands beside a task is for those who may write to it, and what stands on a stream of a run is of that run also when nobody says so.
-- rolling: what programs of before write names its run and is about tasks of their own, and is let in as ever

-- A worker that was taken over could write CallSettled beside tasks of other kinds, which the costs of that run then showed; it could leave the run
-- out, and its events were carried out and in no view; and it could take an event id that follows from public facts with an event of another type
-- of the same stream, and whoever is to write that one was told that it is there.
--   spend              a login may write beside the tasks whose streams it may write to; es.correct_bill has said so from the beginning
--   no run named       the event is of the run of its stream, if that is of one
--   a known event id   stands for the same event only on the same stream and with the same type
DO $patch$
DECLARE
  f record; part record; body text; at int;
BEGIN
  FOR f IN SELECT name FROM (VALUES ('es.append'), ('es.append_plain'), ('es.append_opening'), ('es.correct_bill')) x (name) LOOP
    body := pg_get_functiondef(f.name::regproc);
    FOR part IN SELECT * FROM (VALUES
      ('es.append', $$
  s_run uuid[]; now_run uuid[]; -- stream -> its run
$$, $$
  s_run uuid[]; now_run uuid[]; -- stream -> its run
  w_run uuid[];                 -- write -> the run of its stream, where that is of one
$$),
      ('es.append', $$
  -- Scopes that nobody has heard of get their rows first, see es.make_scopes.
$$, $$
  IF 'spend/' = ANY (g_prefix) THEN
    FOR s IN 1..streams_n LOOP
      IF starts_with(p_streams[s], 'spend/') AND NOT EXISTS (
           SELECT FROM streams t, grants a
            WHERE t.stream_id = 'task/' || substr(p_streams[s], 7) AND a.role = writer AND a.category = 'task'
              AND es.is_covered(t.kind, a.kind, concat(',', array_to_string(a.except_kinds, ','), ','))) THEN
        granted[s] := 0;
      END IF;
    END LOOP;
  END IF;

  -- Scopes that nobody has heard of get their rows first, see es.make_scopes.
$$),
      ('es.append', $$
    SELECT u.name, u.n, q_run[w_request[opener[u.o]]], w_kind[opener[u.o]], $$, $$
    SELECT u.name, u.n, coalesce(q_run[w_request[opener[u.o]]],
                                 CASE WHEN starts_with(u.name, 'spend/') THEN (SELECT z.run_id FROM streams z WHERE z.stream_id = 'task/' || substr(u.name, 7)) END),
           w_kind[opener[u.o]], $$),
      ('es.append', $$
    UPDATE streams t SET run_id = q_run[w_request[u.w]], kind = $$, $$
    UPDATE streams t SET run_id = coalesce(q_run[w_request[u.w]], w_run[u.w]), kind = $$),
      ('es.append', $$
          is_of_run := true;
$$, $$
          is_of_run := true; w_run[w] := now_run[s];
$$),
      ('es.append', $$
        SELECT u.id, p_streams[w_stream[u.made]], q_run[w_request[u.made]], $$, $$
        SELECT u.id, p_streams[w_stream[u.made]], coalesce(q_run[w_request[u.made]], w_run[u.made]), $$),
      ('es.append', $$
      SELECT u.p, u.v, q_occurred_us[w_request[u.w]], u.id, q_run[w_request[u.w]], $$, $$
      SELECT u.p, u.v, q_occurred_us[w_request[u.w]], u.id, coalesce(q_run[w_request[u.w]], w_run[u.w]), $$),
      ('es.append', $$  -- the client takes the batch apart
      END IF;
      SELECT array_agg(u.o::int), array_agg(n.stream_id), $$, $$  -- the client takes the batch apart
      END IF;
      SELECT array_agg(u.o::int), array_agg(CASE WHEN n.type = p_types[e_type[u.o]] THEN n.stream_id END), $$),
      ('es.append', $$
      looked_up := true;
      SELECT array_agg(u.o::int), array_agg(n.stream_id), $$, $$
      looked_up := true;
      SELECT array_agg(u.o::int), array_agg(CASE WHEN n.type = p_types[e_type[u.o]] THEN n.stream_id END), $$),
      ('es.append_plain', $$
  IF q_run <> '{}' AND (prefix = 'spend/' OR array_ndims(q_run) > 1 OR array_lower(q_run, 1) <> 1) THEN
$$, $$
  IF prefix = 'spend/' OR (q_run <> '{}' AND (array_ndims(q_run) > 1 OR array_lower(q_run, 1) <> 1)) THEN
$$),
      ('es.append_plain', $$
        FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes, q_run) x (name, expected, events, closes, run) ORDER BY name COLLATE "C") u
       WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND (t.run_id = u.run OR u.run IS NULL)
$$, $$
        FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes, q_run) x (name, expected, events, closes, run) ORDER BY name COLLATE "C") u
       WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND t.run_id IS NOT DISTINCT FROM u.run
$$),
      ('es.append_plain', $$ ORDER BY name COLLATE "C") u
         WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND (t.run_id = u.run OR u.run IS NULL)
$$, $$ ORDER BY name COLLATE "C") u
         WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND t.run_id IS NOT DISTINCT FROM u.run
$$),
      ('es.append_opening', $$
                 WHERE (q_run <> '{}' AND x.category NOT IN ('run', 'task', 'alert'))
$$, $$
                 WHERE x.category = 'spend' OR (q_run <> '{}' AND x.category NOT IN ('run', 'task', 'alert'))
$$),
      ('es.correct_bill', $$
  INSERT INTO streams AS t (stream_id, version, run_id) VALUES (p_stream, 1, p_run)
$$, $$
  INSERT INTO streams AS t (stream_id, version, run_id) VALUES (p_stream, 1, of_run)
$$),
      ('es.correct_bill', $$
  SELECT e.stream_id, e.version, e.position INTO known, $$, $$
  SELECT CASE WHEN e.type = 'BillCorrected' THEN e.stream_id END, e.version, e.position INTO known, $$),
      ('es.correct_bill', $$
    VALUES (nextval('es.event_position'), r_version, p_occurred_us, p_id, p_run, $$, $$
    VALUES (nextval('es.event_position'), r_version, p_occurred_us, p_id, of_run, $$)
    ) x (name, was, becomes) WHERE x.name = f.name
    LOOP
      at := strpos(body, part.was);
      IF at = 0 OR strpos(substr(body, at + 1), part.was) > 0 THEN
        RAISE EXCEPTION '% has not once what this file changes: %', f.name, part.was;
      END IF;
      body := overlay(body PLACING part.becomes FROM at FOR length(part.was));
    END LOOP;
    EXECUTE body;
  END LOOP;
END $patch$;
