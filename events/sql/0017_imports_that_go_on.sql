-- Reading a run in again: one that went to a file comes back, and one of which only the beginning came (what a fork shares) is made whole. What is
-- there stays as it is, what is missing follows behind it.

-- As in 0011, but for a run that came from a file before, or that went to one. An event that is there must be the one that is given; at least one must
-- be new. A run that was carried out here, and is in the log, is never added to.
CREATE OR REPLACE FUNCTION es.import_run(
  p_run uuid, p_marker_id uuid, p_marker json, p_now_us bigint, p_actor text,
  e_stream text[], e_version bigint[], e_id uuid[], e_type text[], e_schema smallint[], e_us bigint[],
  e_task uuid[], e_cause uuid[], e_trace uuid[], e_actor text[], e_data json[],
  OUT first_position bigint, OUT last_position bigint
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
DECLARE n int := cardinality(e_id); lower_bound bigint; marker_version bigint; missing boolean[];
BEGIN
  IF n = 0 OR cardinality(e_stream) <> n OR cardinality(e_version) <> n OR cardinality(e_type) <> n OR cardinality(e_data) <> n THEN
    RAISE EXCEPTION 'es.import_run: arrays do not fit together' USING ERRCODE = 'ES006';
  END IF;
  IF NOT 'run/' || p_run = ANY (e_stream)
     OR EXISTS (SELECT FROM unnest(e_stream) s (name) WHERE s.name <> 'run/' || p_run AND split_part(s.name, '/', 1) NOT IN ('task', 'spend')) THEN
    RAISE EXCEPTION 'es.import_run: these are not the streams of run %', p_run USING ERRCODE = 'ES006';
  END IF;
  IF EXISTS (SELECT FROM (SELECT v, row_number() OVER (PARTITION BY s ORDER BY o) AS wanted FROM unnest(e_stream, e_version) WITH ORDINALITY u (s, v, o)) x
              WHERE v <> wanted) THEN
    RAISE EXCEPTION 'es.import_run: a stream of run % has a gap', p_run USING ERRCODE = 'ES006';
  END IF;
  INSERT INTO streams AS t (stream_id, version, closed_at) VALUES ('import/' || p_run, 1, clock_timestamp())     -- also keeps a second import waiting
    ON CONFLICT (stream_id) DO UPDATE SET version = t.version + 1 RETURNING t.version INTO marker_version;
  IF EXISTS (SELECT FROM streams s WHERE s.stream_id = 'run/' || p_run) AND marker_version = 1
     AND NOT EXISTS (SELECT FROM streams s WHERE s.stream_id = 'archive/' || p_run) THEN
    RAISE EXCEPTION 'es.import_run: run % was carried out here', p_run USING ERRCODE = 'ES006';
  END IF;
  INSERT INTO streams AS t (stream_id, version, run_id, closed_at)
    SELECT u.s, count(*), p_run, clock_timestamp() FROM unnest(e_stream) u (s) GROUP BY u.s ORDER BY u.s COLLATE "C"
    ON CONFLICT (stream_id) DO UPDATE SET version = greatest(t.version, excluded.version);
  IF EXISTS (SELECT FROM unnest(e_stream) u (s) JOIN streams t ON t.stream_id = u.s WHERE t.run_id IS DISTINCT FROM p_run OR t.closed_at IS NULL)
     OR EXISTS (SELECT FROM unnest(e_stream, e_version, e_id) u (s, v, id) JOIN events e ON e.stream_id = u.s AND e.version = u.v WHERE e.event_id <> u.id) THEN
    RAISE EXCEPTION 'es.import_run: run % is in the log with other events', p_run USING ERRCODE = 'ES006';
  END IF;
  SELECT array_agg(e.event_id IS NULL ORDER BY u.o) INTO missing
    FROM unnest(e_stream, e_version) WITH ORDINALITY u (s, v, o) LEFT JOIN events e ON e.stream_id = u.s AND e.version = u.v;
  IF NOT true = ANY (missing) THEN
    RAISE EXCEPTION 'es.import_run: all of run % is in the log', p_run USING ERRCODE = 'ES006';
  END IF;
  SELECT last_value - (NOT is_called)::int INTO lower_bound FROM event_position;     -- readers' watermark, as in es.append
  PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | lower_bound);
  INSERT INTO events (position, version, occurred_us, event_id, schema_version, stream_id, type, actor, writer, data)
    VALUES (nextval('es.event_position'), marker_version, p_now_us, p_marker_id, 1, 'import/' || p_run, 'RunImported', p_actor, session_user, p_marker)
    RETURNING events.position INTO first_position;
  INSERT INTO events (position, version, occurred_us, event_id, run_id, task_id, causation_id, trace_id, schema_version, stream_id, type, actor, writer, data)
    SELECT nextval('es.event_position'), x.v, x.us, x.id, p_run, x.task, x.cause, x.trace, x.schema, x.s, x.type, x.actor, session_user, x.data
      FROM (SELECT * FROM unnest(e_stream, e_version, e_us, e_id, e_task, e_cause, e_trace, e_schema, e_type, e_actor, e_data, missing) WITH ORDINALITY
                   u (s, v, us, id, task, cause, trace, schema, type, actor, data, is_missing, o) WHERE u.is_missing ORDER BY o) x;
  SELECT max(e.position) INTO last_position FROM events e WHERE e.stream_id = ANY (e_stream) AND e.position > first_position;
END $$;
