-- States of providers as workers see them: which models a worker asks no more for a while, and why.

SET ROLE crewlog_projector;

CREATE TABLE rm.providers (
  worker     text COLLATE "C" NOT NULL,
  wire       text COLLATE "C" NOT NULL,
  provider   text COLLATE "C" NOT NULL,
  model      text COLLATE "C" NOT NULL,
  state      text COLLATE "C" NOT NULL,                             -- closed, open, half_open
  until_us   bigint,                                                -- open: when one call will be tried
  reason     text NOT NULL,
  changed_us bigint NOT NULL,
  PRIMARY KEY (worker, wire, provider, model)
);

CREATE VIEW crewlog.providers AS
SELECT a.kind, p.worker, p.wire, p.provider, p.model, p.state, p.reason,
       to_timestamp(p.until_us / 1e6::float8) AS until_at,
       to_timestamp(p.changed_us / 1e6::float8) AS changed_at
  FROM rm.providers p JOIN rm.agents a ON a.worker = p.worker
 WHERE a.stopped_us IS NULL;

GRANT SELECT ON crewlog.providers TO crewlog_operator, crewlog_orchestrator;
RESET ROLE;
