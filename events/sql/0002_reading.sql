-- Gap-safe reading of the whole log.

-- The position up to which nothing can appear any more: below every append that is still running.
CREATE FUNCTION es.high_water() RETURNS bigint LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, es, pg_temp AS $$
DECLARE drawn bigint; running bigint;
BEGIN
  SELECT last_value - (NOT is_called)::int INTO drawn FROM event_position;
  SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) INTO running FROM pg_locks
   WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = 17747
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
  RETURN least(drawn, running);
END $$;

-- Events behind p_after, never past a gap that may still fill. The watermark and the events need separate snapshots, the events' one
-- later: that is why this is a volatile function and must never become one statement.
CREATE FUNCTION es.read_all(p_after bigint, p_limit int)
RETURNS TABLE ("position" bigint, stream_id text, version bigint, event_id uuid, type text, schema_version smallint, data json, occurred_us bigint,
               run_id uuid, task_id uuid, causation_id uuid, trace_id uuid, actor text, writer text, high_water bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE settled bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.read_all needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  settled := es.high_water();
  RETURN QUERY
    SELECT n.position, n.stream_id, n.version, n.event_id, n.type, n.schema_version, n.data, n.occurred_us,
           n.run_id, n.task_id, n.causation_id, n.trace_id, n.actor, n.writer, settled
      FROM events n WHERE n.position > p_after AND n.position <= settled ORDER BY n.position LIMIT p_limit;
  IF NOT FOUND THEN
    read_all.high_water := settled; RETURN NEXT;                  -- one row that holds the watermark alone
  END IF;
END $$;

-- Ends the sessions of agents that have held an append open for so long, because every reader of the log waits for it. Ours ends by itself: each is one
-- statement, and a session that idles in a transaction is ended by a setting; but whoever has a login may change its settings. An append that waits for a
-- synchronous standby is none of these. Where the owner of the database may not end sessions of others, this does nothing.
CREATE FUNCTION es.end_held_appends(p_after interval) RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp AS $$
  SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
   WHERE a.datname = current_database() AND a.xact_start < clock_timestamp() - p_after AND a.wait_event IS DISTINCT FROM 'SyncRep'
     AND pg_has_role(a.usesysid, 'USAGE')
     AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = 17747)
     AND EXISTS (SELECT FROM grants g WHERE g.role = a.usename AND g.category = 'task' AND NOT g.opens)
$$;

-- What happened since an orchestrator looked last, so that many open runs to which nothing happened cost it nothing.
--
-- One row for each run that has an event behind p_after, with how many events all of its streams have if it is open, and NULL if it is over; never
-- past a gap that may still fill. In front of them one row without a run, which holds the watermark. It is the only one if more than p_max
-- positions lie between: then it costs less to count what is open. As in es.read_all, the watermark needs an earlier snapshot than the events.
CREATE FUNCTION es.changed_runs(p_after bigint, p_max int)
RETURNS TABLE (run_id uuid, events bigint, high_water bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE settled bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.changed_runs needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  PERFORM es.end_held_appends('30 s');                             -- each of our calls takes ten seconds at most
  settled := es.high_water();
  RETURN QUERY SELECT NULL::uuid, NULL::bigint, settled;
  IF settled - p_after > p_max THEN RETURN; END IF;
  RETURN QUERY
    SELECT c.run_id, CASE WHEN r.closed_at IS NULL THEN (SELECT sum(s.version)::bigint FROM streams s WHERE s.run_id = c.run_id) END, settled
      FROM (SELECT DISTINCT e.run_id FROM events e WHERE e.position > p_after AND e.position <= settled AND e.run_id IS NOT NULL) c
      JOIN streams r ON r.stream_id = 'run/' || c.run_id;
END $$;
REVOKE ALL ON FUNCTION es.high_water, es.read_all, es.end_held_appends, es.changed_runs FROM public;
