-- What agents remember for a user or a whole tenant: a table that is searched by words, and who may search it.

-- Grants name logins that may not exist yet; who starts the servers gives them their passwords afterwards.
DO $$ DECLARE r text; BEGIN
  FOREACH r IN ARRAY ARRAY['crewlog_planner', 'crewlog_research', 'crewlog_communicate', 'crewlog_specialist'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
  END LOOP;
END $$;
GRANT USAGE ON SCHEMA crewlog TO crewlog_planner, crewlog_communicate, crewlog_specialist;

SET ROLE crewlog_projector;

CREATE TABLE rm.memories (
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

CREATE VIEW crewlog.memories AS
SELECT m.tenant, nullif(m.user_name, '') AS user_name, m.content, m.memory, m.about, m.trust, m.kind, m.run_id, m.task_id,
       to_timestamp(m.remembered_us / 1e6::float8) AS remembered_at, m.position
  FROM rm.memories m;

-- What a user may be reminded of: their own memories and those of the tenant. Memories that have more of the words come first, then those
-- that have them closer together, then newer ones. Without any word to look for, the newest. p_trusted_only leaves out what came from outside.
CREATE FUNCTION crewlog.search_memories(p_tenant text, p_user text, p_query text, p_limit int, p_trusted_only boolean)
RETURNS TABLE (content text, user_name text, memory text, about text, trust text, kind text, remembered_us bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  asked text[] := tsvector_to_array(to_tsvector('english', p_query));
  any_word tsquery := regexp_replace(plainto_tsquery('english', p_query)::text, ' (&|<(-|\d+)>) ', ' | ', 'g')::tsquery;
BEGIN
  RETURN QUERY
    SELECT m.content, nullif(m.user_name, ''), m.memory, m.about, m.trust, m.kind, m.remembered_us
      FROM rm.memories m
     WHERE m.tenant = p_tenant AND m.user_name IN (p_user, '') AND (m.trust = 'trusted' OR NOT p_trusted_only)
       AND (cardinality(asked) = 0 OR m.words @@ any_word)
     ORDER BY (SELECT count(*) FROM unnest(asked) w WHERE w = ANY (tsvector_to_array(m.words))) DESC,
              ts_rank_cd(m.words, any_word, 1) DESC, m.position DESC LIMIT p_limit;
END $$;
REVOKE ALL ON FUNCTION crewlog.search_memories FROM public;

-- How many memories a user has; of the tenant, when p_user is ''.
CREATE FUNCTION crewlog.count_memories(p_tenant text, p_user text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT count(*) FROM rm.memories m WHERE m.tenant = p_tenant AND m.user_name = p_user
$$;
REVOKE ALL ON FUNCTION crewlog.count_memories FROM public;

GRANT SELECT ON crewlog.memories TO crewlog_operator, crewlog_orchestrator;
GRANT EXECUTE ON FUNCTION crewlog.search_memories, crewlog.count_memories TO
  crewlog_operator, crewlog_orchestrator, crewlog_planner, crewlog_research, crewlog_communicate, crewlog_specialist;

RESET ROLE;
