-- Who may read what: people and the orchestrator everything, the research agent the documents, agents that remember what they may be reminded of.
-- A login that reads the public views and nothing else reads every view there is, and every one that is made later: whoever adds a view need not
-- think of the reader, but must not show secrets in it.

GRANT USAGE ON SCHEMA crewlog TO crewlog_operator, crewlog_orchestrator, crewlog_planner, crewlog_research, crewlog_communicate, crewlog_specialist;
SET ROLE crewlog_projector;
GRANT SELECT ON ALL TABLES IN SCHEMA crewlog TO crewlog_operator, crewlog_orchestrator, crewlog_reader;
GRANT SELECT ON crewlog.documents, crewlog.checkpoints TO crewlog_research;
GRANT EXECUTE ON FUNCTION crewlog.search_documents TO crewlog_operator, crewlog_orchestrator, crewlog_research;
GRANT EXECUTE ON FUNCTION crewlog.search_memories, crewlog.count_memories TO
  crewlog_operator, crewlog_orchestrator, crewlog_planner, crewlog_research, crewlog_communicate, crewlog_specialist;
GRANT USAGE ON SCHEMA crewlog TO crewlog_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA crewlog GRANT SELECT ON TABLES TO crewlog_reader;
RESET ROLE;
