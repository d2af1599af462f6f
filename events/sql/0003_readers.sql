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
REVOKE ALL ON FUNCTION es.high_water, es.read_all FROM public;
