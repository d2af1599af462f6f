-- Whose run an event is of is what its stream says: who could append to one stream could say that it is of any run, and the bus and the views showed
-- it there, also to another tenant.
-- rolling: what programs of before send says of each event the run of its stream, or none

-- The rule, for requests that name a run; those that name none are of none, as ever:
--   run, task, alert   streams of one run: that of the request that opened them
--   spend              of the run of the task beside which it stands, whoever opened it
--   all others         of no run; what is of a run goes there together with a write to a stream of that run, as claims do with the call they are for
-- es.append says so. es.append_plain and es.append_opening leave to it what is not as plain; es.correct_bill is about spend/<task>.
DO $patch$
DECLARE
  f record; part record; body text; at int;
BEGIN
  FOR f IN SELECT name FROM (VALUES ('es.append'), ('es.append_plain'), ('es.append_opening'), ('es.correct_bill')) x (name) LOOP
    body := pg_get_functiondef(f.name::regproc);
    FOR part IN SELECT * FROM (VALUES
      -- the run of each stream comes with its row
      ('es.append', $$
  ours text[]; $$, $$
  s_run uuid[]; now_run uuid[]; -- stream -> its run
  is_of_run boolean;            -- whether the request writes to a stream of its run
  ours text[]; $$),
      ('es.append', $$ THEN t.scopes::text END AS scopes)
  SELECT array_agg(stream_id), array_agg(version), array_agg(closed_at IS NOT NULL), array_agg(scopes)
    INTO ours, advanced, was_closed, s_scopes FROM touched;$$, $$ THEN t.scopes::text END AS scopes, t.run_id AS run)
  SELECT array_agg(stream_id), array_agg(version), array_agg(closed_at IS NOT NULL), array_agg(scopes), array_agg(run)
    INTO ours, advanced, was_closed, s_scopes, s_run FROM touched;$$),
      ('es.append', $$array_agg(t.scopes ORDER BY u.o)
      INTO granted, advanced, was_closed, s_scopes
$$, $$array_agg(t.scopes ORDER BY u.o),
           array_agg(t.run ORDER BY u.o)
      INTO granted, advanced, was_closed, s_scopes, s_run
$$),
      ('es.append', $$unnest(ours, advanced, was_closed, s_scopes) t (name, version, closed, scopes) ON t.name = u.name;
  END IF;
$$, $$unnest(ours, advanced, was_closed, s_scopes, s_run) t (name, version, closed, scopes, run) ON t.name = u.name;
  END IF;
  IF 'spend/' = ANY (g_prefix) THEN
    FOR s IN 1..streams_n LOOP
      IF starts_with(p_streams[s], 'spend/') THEN
        s_run[s] := (SELECT t.run_id FROM streams t WHERE t.stream_id = 'task/' || substr(p_streams[s], 7));
      END IF;
    END LOOP;
  END IF;
$$),
      ('es.append', $$
    latest := advanced;
$$, $$
    latest := advanced; now_run := s_run;
$$),
      ('es.append', $$
      answer := NULL; w0 := w + 1; e0 := e + 1;
$$, $$
      answer := NULL; w0 := w + 1; e0 := e + 1; is_of_run := q_run[q] IS NULL;
$$),
      ('es.append', $$
        EXIT WHEN w = writes OR w_request[w + 1] <> q;
      END LOOP;
$$, $$
        IF p_streams[s] ~ '^(run|task|alert|spend)/' THEN
          IF latest[s] = 0 AND NOT starts_with(p_streams[s], 'spend/') THEN now_run[s] := q_run[q]; END IF;
          is_of_run := true;
          IF answer IS NULL AND q_run[q] IS NOT NULL AND now_run[s] IS DISTINCT FROM q_run[q] THEN
            answer := jsonb_build_object('status', 'malformed', 'reason',
                                         format('%s is of run %s, and its events cannot be of run %s', p_streams[s], coalesce(now_run[s]::text, 'none'), q_run[q]));
          END IF;
        END IF;
        EXIT WHEN w = writes OR w_request[w + 1] <> q;
      END LOOP;
      IF answer IS NULL AND NOT is_of_run THEN
        answer := jsonb_build_object('status', 'malformed', 'reason',
                                     format('%s is of no run, and its events are of run %s only beside events of that run', p_streams[s], q_run[q]));
      END IF;
$$),
      -- a list that is taken by place and by number counts from 1, see 0032
      ('es.append_plain', $$: a list counts from 1' USING ERRCODE = 'ES006';
  END IF;
$$, $$: a list counts from 1' USING ERRCODE = 'ES006';
  END IF;
  IF q_run <> '{}' AND (prefix = 'spend/' OR array_ndims(q_run) > 1 OR array_lower(q_run, 1) <> 1) THEN
    RETURN;
  END IF;
$$),
      ('es.append_plain', $$
        FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes) x (name, expected, events, closes) ORDER BY name COLLATE "C") u
       WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL
$$, $$
        FROM (SELECT * FROM unnest(p_stream, p_expected, p_events, closes, q_run) x (name, expected, events, closes, run) ORDER BY name COLLATE "C") u
       WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND (t.run_id = u.run OR u.run IS NULL)
$$),
      ('es.append_plain', $$unnest(p_stream, p_expected, p_events, closes, h_id, h_amount, h_actual)
                              x (name, expected, events, closes, held, amount, actual) ORDER BY name COLLATE "C") u
         WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL
$$, $$unnest(p_stream, p_expected, p_events, closes, h_id, h_amount, h_actual, q_run)
                              x (name, expected, events, closes, held, amount, actual, run) ORDER BY name COLLATE "C") u
         WHERE t.stream_id = u.name AND t.version = u.expected AND t.closed_at IS NULL AND (t.run_id = u.run OR u.run IS NULL)
$$),
      ('es.append_opening', $$
                 WHERE NOT EXISTS (SELECT FROM grants g $$, $$
                 WHERE (q_run <> '{}' AND x.category NOT IN ('run', 'task', 'alert')) OR NOT EXISTS (SELECT FROM grants g $$),
      ('es.correct_bill', $$
  charged bigint[]; $$, $$
  of_run uuid; charged bigint[]; $$),
      ('es.correct_bill', $$
  SELECT s.scopes INTO charged FROM $$, $$
  SELECT s.scopes, s.run_id INTO charged, of_run FROM $$),
      ('es.correct_bill', $$
    r_status := 'denied';
    RETURN;
  END IF;
$$, $$
    r_status := 'denied';
    RETURN;
  END IF;
  IF p_run IS NOT NULL AND of_run IS DISTINCT FROM p_run THEN
    r_status := 'other_run';
    RETURN;
  END IF;
$$)) x (name, was, becomes) WHERE x.name = f.name
    LOOP
      at := strpos(body, part.was);
      IF at = 0 OR strpos(substr(body, at + 1), part.was) > 0 THEN
        RAISE EXCEPTION '% has not once what this file changes: %', f.name, part.was;
      END IF;
      body := overlay(body PLACING part.becomes FROM at FOR length(part.was));
    END LOOP;
    EXECUTE body;
  END LOOP;
END $patch$;
