-- How far the log has been sent to a tracing tool. No view shows it: it is no fold of the log, and empty where nothing is traced.

SET ROLE crewlog_projector;

CREATE TABLE rm.telemetry (
  position bigint NOT NULL,
  one      boolean PRIMARY KEY DEFAULT true CHECK (one)
) WITH (fillfactor = 50);

RESET ROLE;
