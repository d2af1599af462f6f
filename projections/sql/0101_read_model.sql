-- Tables of the read model. Everything in them is a fold of es.events and can be rebuilt at any time.
-- The projector owns them; everybody else reads the views in schema crewlog (0102). Times ending in _us are microseconds since 1970.

-- Owners and grants name logins that may not exist yet; who starts the servers gives them their passwords afterwards.
DO $$ DECLARE r text; BEGIN
  FOREACH r IN ARRAY ARRAY['crewlog_projector', 'crewlog_orchestrator', 'crewlog_operator', 'crewlog_planner', 'crewlog_research', 'crewlog_communicate',
                           'crewlog_specialist', 'crewlog_archivist', 'crewlog_reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
  END LOOP;
END $$;

CREATE SCHEMA rm AUTHORIZATION crewlog_projector;
CREATE SCHEMA rm_build AUTHORIZATION crewlog_projector;             -- where a rebuild makes fresh tables to compare with
CREATE SCHEMA IF NOT EXISTS crewlog;
ALTER SCHEMA crewlog OWNER TO crewlog_projector;
GRANT USAGE ON SCHEMA es TO crewlog_projector;
GRANT SELECT ON es.events, es.streams, es.budgets TO crewlog_projector;                 -- its views show the log and the ledger themselves, too

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
  error         text,
  hold          jsonb,                                              -- scope, limit, used, needed, since and until when; NULL unless held
  hold_position bigint,                                             -- RunHeld: it has the partial result
  warnings      jsonb NOT NULL DEFAULT '[]',                        -- scopes over their soft limit
  controls      jsonb NOT NULL DEFAULT '[]',                        -- of what operators have in force, what the run itself has taken note of
  parent_run_id uuid                                                -- a fork's parent, or the run that a trial repeats
) WITH (fillfactor = 80);
CREATE INDEX ON rm.runs (submitted_us DESC, run_id);
CREATE INDEX ON rm.runs ((hold ->> 'scope')) WHERE hold IS NOT NULL;
CREATE INDEX ON rm.runs (run_id) WHERE controls <> '[]';
CREATE INDEX ON rm.runs (parent_run_id) WHERE parent_run_id IS NOT NULL;

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

-- Numbers that agents write and views show or sum up have bounds: one that is out of every calendar, or makes a sum pass the end of bigint, would stop
-- the whole view for everybody. The row of such an event is refused; it is left out and stands in crewlog.problems. At most 10^12 tokens a call, and
-- 10^15 micro-USD as in the gate (MICRO_USD_MAX): ten million such calls still have a sum.
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
  uncached_micro_usd bigint,                                        -- the same call at the same price without caching; NULL: the cache was not touched
  wire               text COLLATE "C",
  request_id         text COLLATE "C",
  PRIMARY KEY (task_id, number),
  CONSTRAINT tokens_have_a_sum CHECK (least(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens) >= 0
    AND greatest(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens) <= 1000000000000),
  CONSTRAINT money_has_a_sum CHECK (least(cost_micro_usd, uncached_micro_usd) >= 0 AND greatest(cost_micro_usd, uncached_micro_usd) <= 1000000000000000)
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
  fingerprint        text COLLATE "C",                              -- of tenant, kind, tool and arguments: the same for calls that ask for the same
  compensation       jsonb,                                         -- what to call to take the effect back; its fingerprint is that of the call
  reused             jsonb,                                         -- nothing ran: the call whose outcome this is
  stub               text COLLATE "C",                              -- stubbed, recorded, missing: how a trial answered it instead
  PRIMARY KEY (task_id, call_id)
);
CREATE INDEX ON rm.tool_calls (run_id);
CREATE INDEX ON rm.tool_calls (fingerprint, outcome_position) WHERE status = 'ok' AND fingerprint IS NOT NULL;
CREATE INDEX ON rm.tool_calls (started_us) WHERE compensation IS NOT NULL OR status IN ('unknown', 'interrupted', 'abandoned');

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
  expires_us         bigint NOT NULL CONSTRAINT expiry_has_a_date CHECK (expires_us BETWEEN 0 AND 253402300799999999),
  requested_position bigint NOT NULL,                               -- ApprovalRequested: it has the arguments
  decided_us         bigint,
  actor              text,
  note               text,
  question           text COLLATE "C"                               -- what is asked besides whether a call may run
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
  is_shadow   boolean NOT NULL DEFAULT false,                       -- takes the work of shadows and no other
  PRIMARY KEY (kind, worker)
);

-- States of providers as workers see them: which models a worker asks no more for a while, and why.
CREATE TABLE rm.providers (
  worker     text COLLATE "C" NOT NULL,
  wire       text COLLATE "C" NOT NULL,
  provider   text COLLATE "C" NOT NULL,
  model      text COLLATE "C" NOT NULL,
  state      text COLLATE "C" NOT NULL,                             -- closed, open, half_open
  until_us   bigint CONSTRAINT until_has_a_date CHECK (until_us BETWEEN 0 AND 253402300799999999),   -- open: when one call will be tried
  reason     text NOT NULL,
  changed_us bigint NOT NULL,
  PRIMARY KEY (worker, wire, provider, model)
);

-- What operators have in force: paused and quarantined scopes.
CREATE TABLE rm.controls (
  measure  text COLLATE "C" NOT NULL,                               -- pause or quarantine
  scope    text COLLATE "C" NOT NULL,                               -- run/<run_id>, tenant/<tenant> or kind/<kind>
  actor    text NOT NULL,
  reason   text NOT NULL,
  since_us bigint NOT NULL,
  PRIMARY KEY (measure, scope)
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

CREATE TABLE rm.memories (                                          -- what agents remember for a user or a whole tenant
  tenant        text COLLATE "C" NOT NULL,
  user_name     text COLLATE "C" NOT NULL,                          -- '' for what the whole tenant shares
  content       text COLLATE "C" NOT NULL,                          -- sha-256 of the text: the same text is the same memory
  memory        text NOT NULL,
  about         text NOT NULL,
  trust         text COLLATE "C" NOT NULL,
  kind          text COLLATE "C" NOT NULL,
  run_id        uuid NOT NULL,
  task_id       uuid NOT NULL,
  remembered_us bigint NOT NULL,
  position      bigint NOT NULL,
  words         tsvector NOT NULL GENERATED ALWAYS AS (             -- A: what it is about, D: the text
    setweight(to_tsvector('pg_catalog.english', about), 'A') || setweight(to_tsvector('pg_catalog.english', memory), 'D')) STORED,
  PRIMARY KEY (tenant, user_name, content)
);
CREATE INDEX ON rm.memories USING gin (words);

CREATE TABLE rm.imports (                                           -- runs that came from a file
  run_id      uuid PRIMARY KEY,
  file        text NOT NULL,
  sha256      text COLLATE "C" NOT NULL,
  events      bigint NOT NULL,
  blobs       bigint NOT NULL,
  actor       text NOT NULL,
  made_by     text COLLATE "C" NOT NULL,
  imported_us bigint NOT NULL
);

CREATE TABLE rm.archives (                                          -- runs that went to one
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

CREATE TABLE rm.erasures (                                          -- runs whose person's data was erased
  run_id    uuid PRIMARY KEY,
  tenant    text COLLATE "C" NOT NULL,
  user_name text COLLATE "C" NOT NULL,
  actor     text COLLATE "C" NOT NULL,
  reason    text NOT NULL,
  erased_us bigint NOT NULL
);

-- How far the log has been sent to a tracing tool. No view shows it: it is no fold of the log, and empty where nothing is traced.
CREATE TABLE rm.telemetry (
  position bigint NOT NULL,
  one      boolean PRIMARY KEY DEFAULT true CHECK (one)
) WITH (fillfactor = 50);

RESET ROLE;
