-- What a login could do beyond its rights by calling the gate by hand: pass it with lists that do not count from 1, and write what stops its readers.
-- rolling: what programs of before send and write is let in as ever

-- The gate looks at a list by number, x[1] … x[n], and writes it with unnest(), which goes by place. A Postgres array may begin at any number and have
-- several dimensions: of one that begins at 0 it looked at something else than it wrote. So agents could decide their own approvals, begin a model
-- call without money and end a task whose stream stays open. What else these functions do is said where they were made.
DO $patch$
DECLARE
  begins constant text := E'\nBEGIN\n  IF current_setting(';
  f record; was text; becomes text;
BEGIN
  FOR f IN SELECT * FROM (VALUES ('es.append', '{p_streams,p_types,e_type}'::text[]), ('es.append_plain', '{p_stream,p_events,p_types,e_type}')) x (name, lists)
  LOOP
    was := pg_get_functiondef(f.name::regproc);
    becomes := replace(was, begins, format(
      E'\nBEGIN\n  IF %s THEN\n    RAISE EXCEPTION ''%s: a list counts from 1'' USING ERRCODE = ''ES006'';\n  END IF;\n  IF current_setting(',
      (SELECT string_agg(format('array_ndims(%1$I) > 1 OR array_lower(%1$I, 1) <> 1', l), ' OR ') FROM unnest(f.lists) l), f.name));
    IF becomes = was THEN
      RAISE EXCEPTION '% does not begin as this file expects', f.name;
    END IF;
    EXECUTE becomes;
  END LOOP;
END $patch$;

-- One fact must not stop those who read them all. Clients check the same (append_request.py); a login that was taken over need not be one of them.
--   when it happened   within the calendar of programs, up to the year 9999
--   its text           all of it can be asked for in SQL: escaped NUL and lone surrogates are JSON, and no text
--   its size           what the bus can carry: EVENT_BYTES_MAX, enciphered
ALTER TABLE es.events
  ADD CONSTRAINT events_have_a_date CHECK (occurred_us BETWEEN 0 AND 253402300799999999) NOT VALID,
  ADD CONSTRAINT events_are_text CHECK (CASE WHEN data::text LIKE '%\\u%' THEN data::jsonb IS NOT NULL ELSE true END) NOT VALID,
  ADD CONSTRAINT events_can_be_sent CHECK (pg_column_size(data) <= 800000) NOT VALID;
