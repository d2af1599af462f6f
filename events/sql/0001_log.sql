-- The log: streams, events, blobs, timers, and who may write what.
-- Nobody but the gate (0004 … 0007) writes streams and events: logins get no INSERT, and triggers stop even the owner from changing a fact.

CREATE SCHEMA es;

CREATE SEQUENCE es.event_position AS bigint CACHE 1;            -- CACHE 1: readers rely on numbers being drawn in order

CREATE TABLE es.streams (
  stream_id   text COLLATE "C" PRIMARY KEY,
  version     bigint NOT NULL,                                   -- number of events; rows always have at least one
  run_id      uuid,                                              -- of run, task, alert and spend; all other streams are of no run
  kind        text COLLATE "C",                                  -- agent kind of a task stream, fixed when it is opened
  opened_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  closed_at   timestamptz,                                       -- set together with the terminal event
  scopes      bigint[],                                          -- rows of es.budgets, bound when it is opened; NULL: what happens there is free
  held_id     uuid,                                              -- reservation of the model call that is under way; NULL: none is, or see es.reservations
  held_amount bigint CHECK (held_amount >= 0),                   -- micro-USD; means nothing without held_id
  held_at     bigint,                                            -- version of the event that reserved it
  CONSTRAINT run_streams_name_their_run CHECK (run_id IS NOT NULL OR NOT starts_with(stream_id, 'run/'))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02); -- every append updates a row here: keep those updates HOT
CREATE INDEX streams_run ON es.streams (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX streams_open_run ON es.streams (run_id) WHERE closed_at IS NULL AND starts_with(stream_id, 'run/');

-- The last three rules are checked by clients too (append_request.py), but one fact must not stop those who read them all, and a login that was
-- taken over need not be one of them: a date within the calendar of programs, up to the year 9999; text that can be asked for in SQL (escaped NUL and
-- lone surrogates are JSON, and no text); a size that the bus can carry (EVENT_BYTES_MAX, enciphered).
CREATE TABLE es.events (
  position       bigint PRIMARY KEY,
  version        bigint NOT NULL,
  occurred_us    bigint NOT NULL,                                -- microseconds since 1970, by the writer's clock
  recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(), -- by the server's clock
  event_id       uuid NOT NULL CONSTRAINT events_event_id UNIQUE,
  run_id         uuid,
  task_id        uuid,
  causation_id   uuid,
  trace_id       uuid,
  schema_version smallint NOT NULL,
  stream_id      text COLLATE "C" NOT NULL,
  type           text COLLATE "C" NOT NULL,
  actor          text COLLATE "C" NOT NULL,                      -- what the client says it is
  writer         text COLLATE "C" NOT NULL,                      -- the login: filled in by the database, cannot be forged
  data           json NOT NULL,                                  -- json, not jsonb: bytes and key order stay as written
  CONSTRAINT events_stream_version UNIQUE (stream_id, version),
  CONSTRAINT events_have_a_date CHECK (occurred_us BETWEEN 0 AND 253402300799999999),
  CONSTRAINT events_are_text CHECK (CASE WHEN data::text LIKE '%\\u%' THEN data::jsonb IS NOT NULL ELSE true END),
  CONSTRAINT events_can_be_sent CHECK (pg_column_size(data) <= 800000)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);

-- Few in a log of many, and looked for by what they name: forks; runs that another run's tasks submitted; archived runs that came from a run,
-- which whoever rolls that one back must know.
CREATE INDEX events_forks ON es.events (position) WHERE type = 'RunForked';
CREATE INDEX events_child_runs ON es.events ((data -> 'task' ->> 'parent_task_id'))
 WHERE type = 'RunSubmitted' AND data -> 'task' ->> 'parent_task_id' IS NOT NULL;
CREATE INDEX events_archived_children ON es.events ((data ->> 'parent_task_id'))
 WHERE type = 'RunArchived' AND data ->> 'parent_task_id' IS NOT NULL;

CREATE FUNCTION es.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% on %.% is refused: the log is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'ES003';
END $$;

-- What is left of an event whose run went to a file (0009): where it was and the hash under which it is sealed (0008), so that seals hold on.
CREATE TABLE es.tombstones (
  position bigint PRIMARY KEY,
  digest   bytea NOT NULL CHECK (octet_length(digest) = 32),
  run_id   uuid NOT NULL
);
CREATE INDEX tombstones_run ON es.tombstones (run_id, position);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON es.tombstones FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON es.tombstones FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();

-- An event may be deleted when a tombstone says what it was, and by nobody otherwise, the owner included.
CREATE FUNCTION es.refuse_change_of_event() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, es, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' AND EXISTS (SELECT FROM tombstones t WHERE t.position = OLD.position AND t.digest = es.event_digest(OLD)) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION '% on %.% is refused: the log is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'ES003';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON es.events FOR EACH ROW EXECUTE FUNCTION es.refuse_change_of_event();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON es.events FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();

-- Texts that events refer to. Whoever needs one puts it again: put_at says that it is still in use, see es.prune_blobs.
CREATE TABLE es.blobs (
  hash       bytea PRIMARY KEY CHECK (octet_length(hash) = 32),  -- sha-256 of the uncompressed bytes
  codec      smallint NOT NULL CHECK (codec IN (0, 1)),          -- 0 as is, 1 zlib
  size       integer NOT NULL,                                   -- uncompressed
  created_at timestamptz NOT NULL DEFAULT now(),
  put_at     timestamptz NOT NULL DEFAULT now(),                 -- when somebody put it last, to the hour
  data       bytea NOT NULL,
  CONSTRAINT plain_blobs_match_their_hash CHECK (codec <> 0 OR hash = sha256(data))
);
ALTER TABLE es.blobs ALTER COLUMN data SET STORAGE EXTERNAL;     -- clients compress; the server need not try again

CREATE TABLE es.timers (
  run_id uuid PRIMARY KEY,
  due_us bigint NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX timers_due ON es.timers (due_us);

CREATE TABLE es.grants (                                         -- rows are written by the migration runner, from events/grants.py
  role         text COLLATE "C" NOT NULL,                        -- login
  category     text COLLATE "C" NOT NULL,                        -- what stands before the first '/' of a stream
  types        text[] COLLATE "C" NOT NULL,                      -- event types it may write there
  closing      text[] COLLATE "C" NOT NULL,                      -- those of them that close the stream
  kind         text COLLATE "C",                                 -- only streams of this kind
  except_kinds text[] COLLATE "C" NOT NULL DEFAULT '{}',         -- only streams of a kind that is not listed
  opens        boolean NOT NULL,                                 -- may write the first event of a stream
  PRIMARY KEY (role, category),
  CHECK (closing <@ types),
  CHECK (NOT opens OR (kind IS NULL AND except_kinds = '{}'))    -- a stream that does not exist yet has no kind to check
);
