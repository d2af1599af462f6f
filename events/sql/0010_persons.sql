-- Keys of persons, one per run, and what is under them. They are no facts: a key may be destroyed, the log stays as it is.

CREATE TABLE es.person_keys (
  key_id    uuid PRIMARY KEY,                                      -- the run it was made for, or the first event outside of runs
  tenant    text COLLATE "C" NOT NULL,
  person    text COLLATE "C" NOT NULL,                             -- the run's user
  wrapped   bytea,                                                 -- enciphered by the key-encryption key, which is in no database
  kek_id    text COLLATE "C" NOT NULL,                             -- which one that is
  made_us   bigint NOT NULL,
  erased_us bigint,
  CONSTRAINT erased_or_there CHECK ((wrapped IS NULL) = (erased_us IS NOT NULL))
);
CREATE INDEX person_keys_person ON es.person_keys (tenant, person, made_us);

CREATE TABLE es.person_blobs (                                     -- the large texts under a key
  key_id uuid NOT NULL REFERENCES es.person_keys,
  hash   bytea NOT NULL CHECK (octet_length(hash) = 32),           -- sha-256 of the text, as events refer to it
  data   bytea NOT NULL,
  PRIMARY KEY (hash, key_id)
);
CREATE INDEX person_blobs_key ON es.person_blobs (key_id);
ALTER TABLE es.person_blobs ALTER COLUMN data SET STORAGE EXTERNAL; -- ciphertext does not compress

CREATE TABLE es.person_files (                                     -- which files their runs refer to
  key_id uuid NOT NULL REFERENCES es.person_keys,
  hash   bytea NOT NULL CHECK (octet_length(hash) = 32),           -- of an artifact: attached to the run, or made in it
  PRIMARY KEY (hash, key_id)
);
CREATE INDEX person_files_key ON es.person_files (key_id);

-- Destroys keys of one person and deletes the texts under them. A key whose run has not ended stays, and with it all others: what a run that
-- goes on has written would be lost to itself. Keys of nothing that was ever recorded may go, and those of events outside of runs.
CREATE FUNCTION es.destroy_person_keys(p_tenant text, p_person text, p_keys uuid[], p_now_us bigint, OUT keys bigint, OUT blobs bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
DECLARE open uuid;
BEGIN
  PERFORM FROM person_keys k WHERE k.key_id = ANY (p_keys) ORDER BY k.key_id FOR UPDATE;
  SELECT s.run_id INTO open FROM streams s
   WHERE s.run_id = ANY (p_keys) AND s.closed_at IS NULL AND split_part(s.stream_id, '/', 1) IN ('run', 'task') LIMIT 1;
  IF open IS NOT NULL THEN
    RAISE EXCEPTION 'the keys of % of tenant % stay: run % has not ended', p_person, p_tenant, open USING ERRCODE = 'ES008';
  END IF;
  UPDATE person_keys k SET wrapped = NULL, erased_us = p_now_us
   WHERE k.key_id = ANY (p_keys) AND k.tenant = p_tenant AND k.person = p_person AND k.erased_us IS NULL;
  GET DIAGNOSTICS keys = ROW_COUNT;
  DELETE FROM person_blobs b USING person_keys k WHERE k.key_id = b.key_id AND k.key_id = ANY (p_keys) AND k.erased_us IS NOT NULL;
  GET DIAGNOSTICS blobs = ROW_COUNT;
END $$;
REVOKE ALL ON FUNCTION es.destroy_person_keys FROM public;

-- Deletes the text of a document that is erased, unless another document has the same text. What documents say is found by their streams.
CREATE FUNCTION es.drop_erased_text(p_tenant text, p_content text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
DECLARE own text := 'doc/' || p_tenant || '/' || p_content; last_type text; text_hash text;
BEGIN
  SELECT e.type INTO last_type FROM events e WHERE e.stream_id = own ORDER BY e.version DESC LIMIT 1;
  IF last_type IS DISTINCT FROM 'DocumentErased' THEN
    RAISE EXCEPTION 'the text of document % of tenant % stays: the log does not say that it is erased', p_content, p_tenant USING ERRCODE = 'ES008';
  END IF;
  SELECT e.data ->> 'text' INTO text_hash FROM events e WHERE e.stream_id = own AND e.type = 'DocumentIngested' ORDER BY e.version DESC LIMIT 1;
  IF EXISTS (SELECT FROM streams s JOIN events e ON e.stream_id = s.stream_id
              WHERE s.stream_id >= 'doc/' AND s.stream_id < 'doc0' AND s.stream_id <> own AND e.type = 'DocumentIngested' AND e.data ->> 'text' = text_hash
                AND (SELECT l.type FROM events l WHERE l.stream_id = s.stream_id ORDER BY l.version DESC LIMIT 1) <> 'DocumentErased') THEN
    RETURN false;
  END IF;
  DELETE FROM blobs b WHERE b.hash = decode(text_hash, 'hex');
  RETURN FOUND;
END $$;
REVOKE ALL ON FUNCTION es.drop_erased_text FROM public;
