-- What operators have in force: paused and quarantined scopes, and what of it concerns each run.

SET ROLE crewlog_projector;

CREATE TABLE rm.controls (
  measure  text COLLATE "C" NOT NULL,                               -- pause or quarantine
  scope    text COLLATE "C" NOT NULL,                               -- run/<run_id>, tenant/<tenant> or kind/<kind>
  actor    text NOT NULL,
  reason   text NOT NULL,
  since_us bigint NOT NULL,
  PRIMARY KEY (measure, scope)
);

ALTER TABLE rm.runs ADD COLUMN controls jsonb NOT NULL DEFAULT '[]'; -- what the run itself has taken note of

CREATE INDEX ON rm.runs (run_id) WHERE controls <> '[]';

CREATE VIEW crewlog.controls AS
SELECT c.measure, c.scope, c.actor, c.reason, to_timestamp(c.since_us / 1e6::float8) AS since_at
  FROM rm.controls c;

CREATE VIEW crewlog.run_controls AS
SELECT r.run_id, c.measure, c.scope, c.actor, c.reason, to_timestamp(c.since_us / 1e6::float8) AS since_at
  FROM rm.runs r
  CROSS JOIN LATERAL jsonb_to_recordset(r.controls) c (measure text, scope text, actor text, reason text, since_us bigint)
 WHERE r.controls <> '[]';

GRANT SELECT ON crewlog.controls, crewlog.run_controls TO crewlog_operator, crewlog_orchestrator;

RESET ROLE;
