-- Archived runs that came from a run are found by what their RunArchived names as their parent: whoever rolls that run back must know them.
-- rolling: an index alone, which programs of before do not ask for
CREATE INDEX events_archived_children ON es.events ((data ->> 'parent_task_id'))
 WHERE type = 'RunArchived' AND data ->> 'parent_task_id' IS NOT NULL;
