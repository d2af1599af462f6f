-- Runs that go on from others. Nothing is kept: the fact that begins each says it all.

SET ROLE crewlog_projector;

CREATE VIEW crewlog.forks AS
SELECT n.run_id, (n.data ->> 'parent')::uuid AS parent_run_id, n.data ->> 'tenant' AS tenant, n.data ->> 'user' AS user_name,
       (n.data ->> 'at')::bigint AS shared_events, (n.data ->> 'position')::bigint AS shared_position,
       n.data -> 'changes' -> 'trial' ->> 'effects' AS effects, nullif(n.data -> 'changes' -> 'trial' ->> 'models', '') AS models,
       n.data -> 'changes' AS changes, n.data ->> 'actor' AS actor, nullif(n.data ->> 'reason', '') AS reason,
       to_timestamp(n.occurred_us / 1e6::float8) AS forked_at, n.position
  FROM es.events n
 WHERE n.type = 'RunForked';

GRANT SELECT ON crewlog.forks TO crewlog_operator, crewlog_orchestrator;
RESET ROLE;
