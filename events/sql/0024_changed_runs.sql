-- What happened since an orchestrator looked last, so that many open runs to which nothing happened cost it nothing.
-- rolling: a function that programs of before do not call
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
  settled := es.high_water();
  RETURN QUERY SELECT NULL::uuid, NULL::bigint, settled;
  IF settled - p_after > p_max THEN RETURN; END IF;
  RETURN QUERY
    SELECT c.run_id, CASE WHEN r.closed_at IS NULL THEN (SELECT sum(s.version)::bigint FROM streams s WHERE s.run_id = c.run_id) END, settled
      FROM (SELECT DISTINCT e.run_id FROM events e WHERE e.position > p_after AND e.position <= settled AND e.run_id IS NOT NULL) c
      JOIN streams r ON r.stream_id = 'run/' || c.run_id;
END $$;
REVOKE ALL ON FUNCTION es.changed_runs FROM public;
