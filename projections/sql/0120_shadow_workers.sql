-- Workers that take the work of shadows and no other.

SET ROLE crewlog_projector;

ALTER TABLE rm.agents ADD is_shadow boolean NOT NULL DEFAULT false;

CREATE OR REPLACE VIEW crewlog.agents AS
SELECT g.kind, g.worker, g.description, g.version, g.slots, g.model, g.simulated, g.tools, g.unavailable,
       to_timestamp(g.started_us / 1e6::float8) AS started_at,
       to_timestamp(g.stopped_us / 1e6::float8) AS stopped_at,
       g.is_shadow
  FROM rm.agents g;

RESET ROLE;
