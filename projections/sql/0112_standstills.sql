-- Open runs that an orchestrator found standing still, as long as nothing has happened to them since.

SET ROLE crewlog_projector;

CREATE VIEW crewlog.standstills AS
SELECT e.run_id, r.tenant, e.task_id, e.data->>'what' AS what, to_timestamp((e.data->>'since_us')::bigint / 1e6::float8) AS since_at,
       to_timestamp(e.occurred_us / 1e6::float8) AS noticed_at
  FROM es.streams s
  JOIN es.events e ON e.stream_id = s.stream_id AND e.version = s.version
  JOIN rm.runs r ON r.run_id = e.run_id
 WHERE s.stream_id >= 'alert/' AND s.stream_id < 'alert0'               -- the streams of alerts, by the primary key
   AND r.finished_us IS NULL
   AND NOT EXISTS (SELECT FROM es.streams o JOIN es.events l ON l.stream_id = o.stream_id AND l.version = o.version
                    WHERE o.run_id = e.run_id AND l.position > e.position);

GRANT SELECT ON crewlog.standstills TO crewlog_operator, crewlog_orchestrator;

RESET ROLE;
