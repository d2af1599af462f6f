-- Full-text search over the passages and the memories of one tenant.

SET ROLE crewlog_projector;

-- First all words are asked for, with the search engine syntax people know ("a phrase", or, -not). When no passage has them all, any of
-- them will do (what was excluded stays excluded); then a passage counts by which of the words it has, rare ones more. Ranks above 1 mean
-- that everything asked for is there.
-- p_documents: contents (sha-256) of the documents to look through; NULL for the library of the tenant.
CREATE FUNCTION crewlog.search_documents(p_tenant text, p_query text, p_documents text[], p_limit int)
RETURNS TABLE (document text, name text, line int, passage text, rank real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  all_words tsquery := websearch_to_tsquery('english', p_query);
  any_word tsquery;
  asked text[];
  weights constant real[] := '{0.2, 0.2, 0.4, 1.0}';               -- D, C, B, A: a heading counts five times
BEGIN
  IF querytree(all_words) IN ('', 'T') THEN RETURN; END IF;        -- nothing but stop words, or nothing but exclusions
  RETURN QUERY
    SELECT d.content, d.name, p.line::int, p.passage, (1 + ts_rank_cd(weights, p.words, all_words, 1 | 32))::real AS score
      FROM rm.passages p JOIN rm.documents d ON d.tenant = p.tenant AND d.content = p.content
     WHERE p.tenant = p_tenant AND p.words @@ all_words AND (CASE WHEN p_documents IS NULL THEN d.library ELSE d.content = ANY (p_documents) END)
     ORDER BY score DESC, d.content, p.line, p.number LIMIT p_limit;
  IF FOUND THEN RETURN; END IF;

  any_word := regexp_replace(querytree(all_words), ' (&|<(-|\d+)>) ', ' | ', 'g')::tsquery;
  any_word := any_word && websearch_to_tsquery('english', coalesce(
    (SELECT string_agg(m.part[1], ' ') FROM regexp_matches(p_query, '(?:^|\s)(-(?:"[^"]*"|\S+))', 'g') m (part)), ''));
  asked := tsvector_to_array(to_tsvector('english', p_query));
  RETURN QUERY
    WITH scope AS MATERIALIZED (
      SELECT d.content, d.name FROM rm.documents d
       WHERE d.tenant = p_tenant AND (CASE WHEN p_documents IS NULL THEN d.library ELSE d.content = ANY (p_documents) END)
    ), hits AS MATERIALIZED (
      SELECT s.content, s.name, p.number, p.line, p.passage, ts_rank_cd(weights, p.words, any_word, 1 | 32) AS closeness,
             ARRAY(SELECT unnest(tsvector_to_array(p.words)) INTERSECT SELECT unnest(asked)) AS found
        FROM rm.passages p JOIN scope s ON s.content = p.content WHERE p.tenant = p_tenant AND p.words @@ any_word
    ), words AS (
      SELECT w.word, ln(1 + (SELECT count(*) FROM hits) / count(*)::float8) AS worth FROM hits, unnest(hits.found) w (word) GROUP BY w.word
    ), total AS (
      SELECT sum(worth) AS worth FROM words
    )
    SELECT h.content, h.name, h.line::int, h.passage,
           (0.8 * (SELECT sum(words.worth) FROM words WHERE words.word = ANY (h.found)) / total.worth + 0.2 * h.closeness)::real AS score
      FROM hits h, total
     ORDER BY score DESC, h.content, h.line, h.number LIMIT p_limit;
END $$;
REVOKE ALL ON FUNCTION crewlog.search_documents FROM public;

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

RESET ROLE;
