-- Runs that came from a file and runs that went to one; and a login that reads the public views and nothing else.

DO $$ DECLARE r text; BEGIN
  FOREACH r IN ARRAY ARRAY['crewlog_archivist', 'crewlog_reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
  END LOOP;
END $$;

SET ROLE crewlog_projector;

CREATE TABLE rm.imports (
  run_id      uuid PRIMARY KEY,
  file        text NOT NULL,
  sha256      text COLLATE "C" NOT NULL,
  events      bigint NOT NULL,
  blobs       bigint NOT NULL,
  actor       text NOT NULL,
  made_by     text COLLATE "C" NOT NULL,
  imported_us bigint NOT NULL
);

CREATE TABLE rm.archives (
  run_id         uuid PRIMARY KEY,
  tenant         text COLLATE "C" NOT NULL,
  user_name      text COLLATE "C" NOT NULL,
  type           text COLLATE "C" NOT NULL,
  goal           text NOT NULL,
  status         text COLLATE "C" NOT NULL,
  submitted_us   bigint NOT NULL,
  finished_us    bigint NOT NULL,
  cost_micro_usd bigint NOT NULL,
  events         bigint NOT NULL,
  file           text NOT NULL,
  sha256         text COLLATE "C" NOT NULL,
  actor          text NOT NULL,
  archived_us    bigint NOT NULL
);

CREATE VIEW crewlog.imports AS
SELECT i.run_id, i.file, i.sha256, i.events, i.blobs, i.actor, i.made_by, to_timestamp(i.imported_us / 1e6::float8) AS imported_at
  FROM rm.imports i;

CREATE VIEW crewlog.archives AS
SELECT a.run_id, a.tenant, a.user_name, a.type, a.goal, a.status,
       to_timestamp(a.submitted_us / 1e6::float8) AS submitted_at, to_timestamp(a.finished_us / 1e6::float8) AS finished_at,
       a.cost_micro_usd, a.events, a.file, a.sha256, a.actor, to_timestamp(a.archived_us / 1e6::float8) AS archived_at
  FROM rm.archives a;

GRANT SELECT ON crewlog.imports, crewlog.archives TO crewlog_operator, crewlog_orchestrator;

-- Every view there is, and every one that is made later: whoever adds a view need not think of the reader, but must not show secrets in it.
GRANT USAGE ON SCHEMA crewlog TO crewlog_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA crewlog TO crewlog_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA crewlog GRANT SELECT ON TABLES TO crewlog_reader;

RESET ROLE;
