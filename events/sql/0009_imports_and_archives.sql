-- Runs that come from a file and runs that go to one: the only two ways around the gate, each a narrow function; and texts that nothing refers to.

-- Writes the events of a run that happened elsewhere, with a RunImported in stream import/<run> before them, and closes its streams: nobody
-- appends to them, so nothing of it is ever carried out. Ids, versions, times, and who said to be the actor stay; positions and the writer are of
-- here. Events e_* are in the order of the log they come from. A run that went to a file comes back, and one of which only the beginning came (what a
-- fork shares) is made whole: an event that is there must be the one that is given, at least one must be new, and what is missing follows behind.
-- A run that was carried out here, and is in the log, is never added to. Gives the first and the last position.
CREATE FUNCTION es.import_run(
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
     OR EXISTS (SELECT FROM unnest(e_stream) s (name)
                 WHERE s.name NOT IN ('run/' || p_run, 'alert/' || p_run) AND split_part(s.name, '/', 1) NOT IN ('task', 'spend')) THEN
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
REVOKE ALL ON FUNCTION es.import_run FROM public;

-- The hash of what the seals say about a run: of the hashes of its events, in the order of their positions.
CREATE FUNCTION es.run_digest(p_run uuid, OUT events bigint, OUT digest bytea) LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
  SELECT count(*), sha256(coalesce(string_agg(es.event_digest(e), ''::bytea ORDER BY e.position), ''::bytea))
    FROM streams s JOIN events e ON e.stream_id = s.stream_id WHERE s.run_id = p_run
$$;
REVOKE ALL ON FUNCTION es.run_digest FROM public;

-- Says why a run may not leave the log; NULL when it may.
CREATE FUNCTION es.archive_hindrance(p_run uuid) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
  SELECT CASE
    WHEN NOT EXISTS (SELECT FROM events e WHERE e.stream_id = 'run/' || p_run AND e.version = 1) THEN 'it is not in the log'
    WHEN EXISTS (SELECT FROM streams s WHERE s.run_id = p_run AND s.closed_at IS NULL AND split_part(s.stream_id, '/', 1) IN ('run', 'task'))
      THEN 'it has not ended, or a task of it has not'
    WHEN EXISTS (SELECT FROM streams s JOIN reservations r ON r.stream_id = s.stream_id WHERE s.run_id = p_run AND r.released_at IS NULL AND r.amount > 0)
      THEN 'money is reserved for a model call of it that nobody has settled'
    WHEN EXISTS (SELECT FROM streams s JOIN events e ON e.stream_id = s.stream_id
                  WHERE s.run_id = p_run AND e.position > (SELECT coalesce(max(x.last_position), 0) FROM seals x))
      THEN 'it is not sealed yet'
    WHEN EXISTS (SELECT FROM events n WHERE n.type = 'RunForked' AND n.data ->> 'parent' = p_run::text)
      THEN 'a fork refers to its events; archive the fork first'
  END
$$;
REVOKE ALL ON FUNCTION es.archive_hindrance FROM public;

-- Takes a run out of the log and leaves tombstones. A RunArchived in stream archive/<run> must say where it went, with the digest of exactly these
-- events: what was not looked at is not deleted. Gives the number of events.
CREATE FUNCTION es.archive_run(p_run uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
DECLARE archived json; hindrance text; found record;
BEGIN
  SELECT e.data INTO archived FROM events e WHERE e.stream_id = 'archive/' || p_run AND e.type = 'RunArchived' ORDER BY e.version DESC LIMIT 1;
  IF archived IS NULL THEN
    RAISE EXCEPTION 'run % is not said to be archived: append RunArchived first', p_run USING ERRCODE = 'ES007';
  END IF;
  PERFORM FROM streams s WHERE s.run_id = p_run ORDER BY s.stream_id FOR UPDATE;    -- nobody appends meanwhile, sorted as in es.append
  hindrance := es.archive_hindrance(p_run);
  IF hindrance IS NOT NULL THEN
    RAISE EXCEPTION 'run % stays in the log: %', p_run, hindrance USING ERRCODE = 'ES007';
  END IF;
  SELECT d.events, encode(d.digest, 'hex') AS digest INTO found FROM es.run_digest(p_run) d;
  IF found.digest IS DISTINCT FROM archived ->> 'digest' THEN
    RAISE EXCEPTION 'run % is not what RunArchived says: % events with digest %', p_run, found.events, found.digest USING ERRCODE = 'ES007';
  END IF;
  INSERT INTO tombstones (position, digest, run_id)
    SELECT e.position, es.event_digest(e), p_run FROM streams s JOIN events e ON e.stream_id = s.stream_id WHERE s.run_id = p_run;
  DELETE FROM events e USING streams s WHERE s.run_id = p_run AND e.stream_id = s.stream_id;
  UPDATE streams s SET closed_at = clock_timestamp() WHERE s.run_id = p_run AND s.closed_at IS NULL;   -- what stood beside it ends with it
  RETURN found.events;
END $$;
REVOKE ALL ON FUNCTION es.archive_run FROM public;

-- Deletes those of these blobs that nobody has put since p_before. The caller says that no event refers to them; a text must not go that somebody is
-- about to refer to, so what was used within the last day stays. Gives their number and bytes.
CREATE FUNCTION es.prune_blobs(p_hashes bytea[], p_before timestamptz, OUT blobs bigint, OUT bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
BEGIN
  IF p_before > now() - interval '1 day' THEN
    RAISE EXCEPTION 'blobs that were put within the last day stay: a process may be about to refer to one' USING ERRCODE = 'ES007';
  END IF;
  WITH gone AS (DELETE FROM blobs b WHERE b.hash = ANY (p_hashes) AND b.put_at < p_before RETURNING octet_length(b.data) AS size)
  SELECT count(*), coalesce(sum(gone.size), 0) INTO blobs, bytes FROM gone;
END $$;
REVOKE ALL ON FUNCTION es.prune_blobs FROM public;
