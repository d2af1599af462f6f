-- Seals: a chain of hashes over the log in its global order. Whoever changes, removes, adds or reorders events behind a seal breaks the chain.
-- Nothing of this is on the way of an append: es.seal is called by the projector every few seconds, and computes the hashes itself, so that
-- who may call it can do nothing but seal what is there.

CREATE TABLE es.seals (
  number         bigint PRIMARY KEY,                               -- 1, 2, 3 …
  first_position bigint NOT NULL,                                  -- one behind the last position of the seal before
  last_position  bigint NOT NULL CHECK (last_position >= first_position),
  events         integer NOT NULL CHECK (events > 0),
  hash           bytea NOT NULL CHECK (octet_length(hash) = 32),   -- of the hash before, the four numbers and the hash of every event
  marks          bytea NOT NULL,                                   -- per event: position - first_position, hashtext(stream), begin of its hash: 4, 4, 8 bytes
  sealed_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE es.seals ALTER COLUMN marks SET STORAGE EXTERNAL;      -- hashes do not compress
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON es.seals FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON es.seals FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();

-- The hash under which an event is sealed: the sha-256 of all its columns in binary form, with their types and lengths; events/seals.py has the same list.
CREATE FUNCTION es.event_digest(e es.events) RETURNS bytea LANGUAGE sql STABLE AS $$
  SELECT sha256(record_send(ROW(e.position, e.stream_id, e.version, e.event_id, e.type, e.schema_version, e.occurred_us, e.recorded_at,
                                e.run_id, e.task_id, e.causation_id, e.trace_id, e.actor, e.writer, e.data)))
$$;
REVOKE ALL ON FUNCTION es.event_digest FROM public;

-- Seals up to p_max events behind the last seal, never past a gap that may still fill, and gives the new seal; no row when there is nothing to seal.
-- It spells es.event_digest out, which costs less than a call for each event.
CREATE FUNCTION es.seal(p_max int)
RETURNS TABLE (number bigint, first_position bigint, last_position bigint, events int, hash bytea)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE settled bigint; before record; found record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'es.seal needs READ COMMITTED' USING ERRCODE = 'ES005';
  END IF;
  PERFORM pg_advisory_xact_lock(x'637265777365616C'::bigint);      -- one at a time; what follows sees the seal of whoever was before
  SELECT s.number, s.last_position, s.hash INTO before FROM seals s ORDER BY s.number DESC LIMIT 1;
  seal.number := coalesce(before.number, 0) + 1;
  seal.first_position := coalesce(before.last_position, 0) + 1;
  settled := es.high_water();                                      -- in a snapshot before that of the events, as in es.read_all
  SELECT count(*)::int AS events, max(x.position) AS last_position,
         string_agg(x.digest, ''::bytea ORDER BY x.position) AS digests,
         string_agg(int4send((x.position - seal.first_position)::int) || int4send(x.stream) || substr(x.digest, 1, 8), ''::bytea ORDER BY x.position) AS marks
    INTO found
    FROM (SELECT e.position, hashtext(e.stream_id) AS stream, sha256(record_send(ROW(
                   e.position, e.stream_id, e.version, e.event_id, e.type, e.schema_version, e.occurred_us, e.recorded_at,
                   e.run_id, e.task_id, e.causation_id, e.trace_id, e.actor, e.writer, e.data))) AS digest
            FROM events e WHERE e.position >= seal.first_position AND e.position <= settled ORDER BY e.position LIMIT p_max) x;
  IF found.events = 0 THEN RETURN; END IF;
  seal.last_position := found.last_position; seal.events := found.events;
  seal.hash := sha256(coalesce(before.hash, ''::bytea) || int8send(seal.number) || int8send(seal.first_position) || int8send(seal.last_position)
                      || int4send(seal.events) || found.digests);
  INSERT INTO seals (number, first_position, last_position, events, hash, marks)
    VALUES (seal.number, seal.first_position, seal.last_position, seal.events, seal.hash, found.marks);
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION es.seal FROM public;
