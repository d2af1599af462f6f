-- What goes with a person's keys: which files their runs refer to, and the texts of documents that nobody else has attached.
-- rolling: a table and a function of their own, which nothing uses before CREWLOG_PERSON_KEYS is on

CREATE TABLE es.person_files (
  key_id uuid NOT NULL REFERENCES es.person_keys,
  hash   bytea NOT NULL CHECK (octet_length(hash) = 32),           -- of an artifact: attached to the run, or made in it
  PRIMARY KEY (hash, key_id)
);
CREATE INDEX person_files_key ON es.person_files (key_id);

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
