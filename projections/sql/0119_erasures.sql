-- Runs whose person's data was erased: what was personal in them is gone from the log.

SET ROLE crewlog_projector;

CREATE TABLE rm.erasures (
  run_id    uuid PRIMARY KEY,
  tenant    text COLLATE "C" NOT NULL,
  user_name text COLLATE "C" NOT NULL,
  actor     text COLLATE "C" NOT NULL,
  reason    text NOT NULL,
  erased_us bigint NOT NULL
);

CREATE VIEW crewlog.erasures AS
SELECT e.run_id, e.tenant, e.user_name, to_timestamp(e.erased_us / 1e6::float8) AS erased_at, e.actor, e.reason
  FROM rm.erasures e;

GRANT SELECT ON crewlog.erasures TO crewlog_operator, crewlog_orchestrator;
RESET ROLE;
