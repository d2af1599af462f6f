-- Tables of the read model. Everything in them is a fold of es.events and can be rebuilt at any time.
-- The projector owns them; everybody else reads the views in schema crewlog (0102). Times ending in _us are microseconds since 1970.

-- Owners and grants name logins that may not exist yet; who starts the servers gives them their passwords afterwards.
DO $$ DECLARE r text; BEGIN
  FOREACH r IN ARRAY ARRAY['crewlog_projector', 'crewlog_orchestrator', 'crewlog_operator', 'crewlog_research'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
  END LOOP;
END $$;

CREATE SCHEMA rm AUTHORIZATION crewlog_projector;
CREATE SCHEMA rm_build AUTHORIZATION crewlog_projector;             -- where a rebuild makes fresh tables to compare with
CREATE SCHEMA IF NOT EXISTS crewlog;
ALTER SCHEMA crewlog OWNER TO crewlog_projector;
GRANT USAGE ON SCHEMA es TO crewlog_projector;
GRANT SELECT ON es.events, es.streams TO crewlog_projector;         -- its views show the log itself, too

SET ROLE crewlog_projector;

CREATE TABLE rm.checkpoints (
  name     text COLLATE "C" PRIMARY KEY,
  version  integer NOT NULL,
  position bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE rm.problems (                                          -- facts a projection could not take in
  projection text COLLATE "C" NOT NULL,
  position   bigint NOT NULL,
  stream     text COLLATE "C" NOT NULL,
  type       text COLLATE "C" NOT NULL,
  error      text NOT NULL,
  PRIMARY KEY (projection, position)
);

CREATE TABLE rm.unreadable (                                        -- events this program does not know or cannot decode
  type           text COLLATE "C" NOT NULL,
  schema_version integer NOT NULL,
  error          text NOT NULL,
  first_position bigint NOT NULL,
  last_position  bigint NOT NULL,
  events         bigint NOT NULL,
  PRIMARY KEY (type, schema_version)
);

CREATE TABLE rm.runs (
  run_id        uuid PRIMARY KEY,
  tenant        text COLLATE "C" NOT NULL,
  user_name     text COLLATE "C" NOT NULL,
  type          text COLLATE "C" NOT NULL,
  goal          text NOT NULL,
  source        text COLLATE "C" NOT NULL,
  status        text COLLATE "C" NOT NULL,
  plan_origin   text COLLATE "C",
  plan_revision bigint,
  submitted_us  bigint NOT NULL,
  finished_us   bigint,
  end_position  bigint,                                             -- the event that ended the run: it has the answer
  flags         jsonb NOT NULL,
  artifacts     jsonb NOT NULL,
  error_code    text COLLATE "C",
  error         text
) WITH (fillfactor = 80);
CREATE INDEX ON rm.runs (submitted_us DESC, run_id);

CREATE TABLE rm.tasks (
  run_id           uuid NOT NULL,
  key              text COLLATE "C" NOT NULL,
  revision         bigint NOT NULL,
  task_id          uuid NOT NULL,
  kind             text COLLATE "C" NOT NULL,
  objective        text NOT NULL,
  depends_on       jsonb NOT NULL,
  status           text COLLATE "C" NOT NULL,
  waiting_reason   text,
  worker           text COLLATE "C",
  provider         text COLLATE "C",
  model            text COLLATE "C",
  simulated        boolean NOT NULL,
  attempt          bigint NOT NULL,
  turns            bigint NOT NULL,
  model_calls      bigint NOT NULL,
  tool_calls       bigint NOT NULL,
  input_tokens     bigint NOT NULL,
  output_tokens    bigint NOT NULL,
  cached_tokens    bigint NOT NULL,
  cost_micro_usd   bigint NOT NULL,
  unpriced_calls   bigint NOT NULL,
  planned_us       bigint NOT NULL,
  dispatched_us    bigint,
  started_us       bigint,
  finished_us      bigint,
  deadline_us      bigint,
  verdict          text COLLATE "C",
  issues           jsonb NOT NULL,
  artifacts        jsonb NOT NULL,
  outcome_position bigint,                                          -- TaskCompleted: it has the outcome
  error_code       text COLLATE "C",
  error            text,
  PRIMARY KEY (run_id, key, revision),
  CONSTRAINT unfinished_tasks_wait_for_something CHECK
    ((waiting_reason IS NULL) = (status IN ('completed', 'revised', 'failed', 'cancelled', 'skipped')))
) WITH (fillfactor = 70);
CREATE INDEX ON rm.tasks (task_id);
CREATE INDEX ON rm.tasks (run_id, key, revision) WHERE finished_us IS NULL;

CREATE TABLE rm.model_calls (
  task_id            uuid NOT NULL,
  number             bigint NOT NULL,
  run_id             uuid NOT NULL,
  call_id            text COLLATE "C" NOT NULL,
  turn               bigint NOT NULL,
  provider           text COLLATE "C" NOT NULL,
  model              text COLLATE "C" NOT NULL,
  status             text COLLATE "C" NOT NULL,
  started_us         bigint NOT NULL,
  finished_us        bigint,
  latency_ms         bigint,
  stop               text COLLATE "C",
  simulated          boolean NOT NULL,
  input_tokens       bigint NOT NULL,
  output_tokens      bigint NOT NULL,
  cache_read_tokens  bigint NOT NULL,
  cache_write_tokens bigint NOT NULL,
  reasoning_tokens   bigint NOT NULL,
  cost_micro_usd     bigint,                                        -- NULL: not priced, which is not the same as free
  price_source       text COLLATE "C",
  outcome_position   bigint,
  error_code         text COLLATE "C",
  error              text,
  PRIMARY KEY (task_id, number)
);
CREATE INDEX ON rm.model_calls (run_id);

CREATE TABLE rm.tool_calls (
  task_id            uuid NOT NULL,
  call_id            text COLLATE "C" NOT NULL,
  run_id             uuid NOT NULL,
  turn               bigint NOT NULL,
  tool               text COLLATE "C" NOT NULL,
  status             text COLLATE "C" NOT NULL,
  requested_us       bigint NOT NULL,
  tool_version       text COLLATE "C",
  effect             text COLLATE "C",
  idempotency_key    text COLLATE "C",
  approval_id        uuid,
  starts             bigint NOT NULL,
  trust              text COLLATE "C",
  started_us         bigint,
  finished_us        bigint,
  latency_ms         bigint,
  requested_position bigint,                                        -- ModelCallFinished: it has the arguments
  outcome_position   bigint,                                        -- ToolFinished: it has the result
  PRIMARY KEY (task_id, call_id)
);
CREATE INDEX ON rm.tool_calls (run_id);

CREATE TABLE rm.approvals (
  approval_id        uuid PRIMARY KEY,
  run_id             uuid NOT NULL,
  task_id            uuid NOT NULL,
  call_id            text COLLATE "C" NOT NULL,
  tool               text COLLATE "C" NOT NULL,
  reason             text NOT NULL,
  digest             text COLLATE "C" NOT NULL,
  status             text COLLATE "C" NOT NULL,
  requested_us       bigint NOT NULL,
  expires_us         bigint NOT NULL,
  requested_position bigint NOT NULL,                               -- ApprovalRequested: it has the arguments
  decided_us         bigint,
  actor              text,
  note               text
);
CREATE INDEX ON rm.approvals (run_id);
CREATE INDEX ON rm.approvals (requested_us) WHERE decided_us IS NULL;

CREATE TABLE rm.agents (
  kind        text COLLATE "C" NOT NULL,
  worker      text COLLATE "C" NOT NULL,
  description text NOT NULL,
  version     text NOT NULL,
  slots       bigint NOT NULL,
  model       text NOT NULL,
  simulated   boolean NOT NULL,
  tools       jsonb NOT NULL,
  unavailable text NOT NULL,
  started_us  bigint NOT NULL,
  stopped_us  bigint,
  PRIMARY KEY (kind, worker)
);

CREATE TABLE rm.documents (
  tenant     text COLLATE "C" NOT NULL,
  content    text COLLATE "C" NOT NULL,                             -- sha-256 of the file: the same bytes are the same document
  name       text NOT NULL,
  title      text NOT NULL,
  media_type text NOT NULL,
  size       bigint NOT NULL,
  lines      bigint NOT NULL,
  library    boolean NOT NULL,
  text_hash  text COLLATE "C" NOT NULL,
  position   bigint NOT NULL,
  PRIMARY KEY (tenant, content)
);

CREATE TABLE rm.passages (
  tenant  text COLLATE "C" NOT NULL,
  content text COLLATE "C" NOT NULL,
  number  bigint NOT NULL,
  line    bigint NOT NULL,
  heading text NOT NULL,
  passage text NOT NULL,
  words   tsvector NOT NULL GENERATED ALWAYS AS (                   -- A: heading, D: text; search weighs a word in a heading more
    setweight(to_tsvector('pg_catalog.english', heading), 'A') || setweight(to_tsvector('pg_catalog.english', passage), 'D')) STORED,
  PRIMARY KEY (tenant, content, number)
);
CREATE INDEX ON rm.passages USING gin (words);

RESET ROLE;
