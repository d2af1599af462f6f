-- Forked runs are found by their first event: there are few, in a log of many.
CREATE INDEX events_forks ON es.events (position) WHERE type = 'RunForked';
