-- The view of turns is read by those who read the others.

SET ROLE crewlog_projector;
GRANT SELECT ON crewlog.turns TO crewlog_operator, crewlog_orchestrator;
RESET ROLE;
