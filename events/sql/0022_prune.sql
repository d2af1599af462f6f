-- Deleting texts that nothing in the log refers to any more. Blobs are named by their content and put again by whoever needs one, so a text must not go
-- that somebody is about to refer to: putting one that is there says that it is still in use, and what was used within the last day stays.

ALTER TABLE es.blobs ADD put_at timestamptz NOT NULL DEFAULT now();   -- when somebody put it last, to the hour

-- Deletes those of these blobs that nobody has put since p_before. The caller says that no event refers to them. Gives their number and bytes.
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
