-- Who may read what: people and the orchestrator everything, the research agent the documents, other agents nothing.

GRANT USAGE ON SCHEMA crewlog TO crewlog_operator, crewlog_orchestrator, crewlog_research;
SET ROLE crewlog_projector;
GRANT SELECT ON ALL TABLES IN SCHEMA crewlog TO crewlog_operator, crewlog_orchestrator;
GRANT SELECT ON crewlog.documents, crewlog.checkpoints TO crewlog_research;
GRANT EXECUTE ON FUNCTION crewlog.search_documents TO crewlog_operator, crewlog_orchestrator, crewlog_research;
RESET ROLE;
