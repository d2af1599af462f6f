-- Runs that another run's tasks submitted are found by what they name as their parent: most runs name none.
-- rolling: an index alone, which programs of before do not ask for
CREATE INDEX events_child_runs ON es.events ((data -> 'task' ->> 'parent_task_id'))
 WHERE type = 'RunSubmitted' AND data -> 'task' ->> 'parent_task_id' IS NOT NULL;
