-- Money: what may be spent in a scope, what is spent and reserved there, and what is reserved for calls that are under way.
-- Nobody but the gate writes these tables. The facts are events; what is here is what the next append must know at once.

CREATE TABLE es.budgets (
  scope_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,       -- what streams and reservations refer to: rows are locked in its order
  scope    text COLLATE "C" NOT NULL UNIQUE,
  soft     bigint CHECK (soft >= 0),                              -- micro-USD, as everything here; NULL: no limit
  hard     bigint CHECK (hard >= soft),
  spent    bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
  reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  CHECK (hard >= 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);  -- every model call updates a few rows: keep those updates HOT

-- The reservation of a plain append (0005) is kept in the row of its stream, which is written anyway: a row of its own cost more than all the sums.
-- Here are the others: a second one of a stream, one that was given back, and one whose stream has ended, for the sweep. Settled ones are gone.
CREATE TABLE es.reservations (
  reservation_id uuid PRIMARY KEY,
  stream_id      text COLLATE "C" NOT NULL,
  run_id         uuid,
  task_id        uuid,
  amount         bigint NOT NULL CHECK (amount >= 0),
  since_us       bigint NOT NULL,                                 -- microseconds since 1970, by the writer's clock
  released_at    timestamptz                                      -- given back: a price that comes late is charged all the same
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX reservations_released ON es.reservations (released_at) WHERE released_at IS NOT NULL;

-- All that is reserved, wherever it stands. Looks at every stream: for audits, not for what is done again and again.
CREATE VIEW es.open_reservations AS
SELECT reservation_id, stream_id, run_id, task_id, amount, since_us FROM es.reservations WHERE released_at IS NULL
 UNION ALL
SELECT s.held_id, s.stream_id, e.run_id, e.task_id, s.held_amount, e.occurred_us
  FROM es.streams s JOIN es.events e ON e.stream_id = s.stream_id AND e.version = s.held_at WHERE s.held_id IS NOT NULL;

-- A sum of amounts. sum() of bigint would go by numeric, which costs more than the rest of these additions; this one stops at the end of bigint.
CREATE AGGREGATE es.total(bigint) (SFUNC = int8pl, STYPE = bigint, INITCOND = '0');
REVOKE ALL ON FUNCTION es.total FROM public;

-- Gives the row of each scope, making those that nobody has heard of. New rows are all that is locked by it, and they are made in order:
-- it waits for whoever makes the same scope at this moment, and for nothing else.
CREATE FUNCTION es.make_scopes(p_scope text[], p_soft bigint[], p_hard bigint[], OUT k_scope bigint[], OUT f_scope bigint[], OUT f_new boolean[])
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, es, pg_temp AS $$
DECLARE made bigint[];
BEGIN
  IF EXISTS (SELECT FROM unnest(p_scope) u (scope) WHERE NOT EXISTS (SELECT FROM budgets b WHERE b.scope = u.scope)) THEN
    WITH fresh AS (
      INSERT INTO budgets (scope, soft, hard)
      SELECT DISTINCT ON (u.scope COLLATE "C") u.scope, u.soft, u.hard FROM unnest(p_scope, p_soft, p_hard) WITH ORDINALITY u (scope, soft, hard, o)
       WHERE NOT EXISTS (SELECT FROM budgets b WHERE b.scope = u.scope) ORDER BY u.scope COLLATE "C", u.o
      ON CONFLICT (scope) DO NOTHING RETURNING scope_id)
    SELECT array_agg(scope_id) INTO made FROM fresh;
  END IF;
  SELECT array_agg(b.scope_id ORDER BY u.o) INTO k_scope FROM unnest(p_scope) WITH ORDINALITY u (scope, o) JOIN budgets b ON b.scope = u.scope;
  SELECT array_agg(DISTINCT x ORDER BY x) INTO f_scope FROM unnest(k_scope) x;
  SELECT array_agg(coalesce(x = ANY (made), false) ORDER BY x) INTO f_new FROM unnest(f_scope) x;
END $$;
REVOKE ALL ON FUNCTION es.make_scopes FROM public;

-- Moves reservations from the rows of these streams into es.reservations: those named, or all of them. Locks the rows in the order of their names.
CREATE FUNCTION es.set_aside(p_streams text[], p_held uuid[]) RETURNS void LANGUAGE sql VOLATILE
SET search_path = pg_catalog, es, pg_temp SET enable_seqscan = off AS $$
  WITH held AS MATERIALIZED (
    SELECT s.stream_id, s.held_id, s.held_amount, s.held_at FROM streams s
     WHERE s.stream_id = ANY (p_streams) AND s.held_id IS NOT NULL AND (p_held IS NULL OR s.held_id = ANY (p_held))
     ORDER BY s.stream_id FOR UPDATE),
  emptied AS (
    UPDATE streams s SET held_id = NULL FROM held h WHERE s.stream_id = h.stream_id)
  INSERT INTO reservations (reservation_id, stream_id, run_id, task_id, amount, since_us)
  SELECT h.held_id, h.stream_id, e.run_id, e.task_id, h.held_amount, e.occurred_us
    FROM held h JOIN events e ON e.stream_id = h.stream_id AND e.version = h.held_at
$$;
REVOKE ALL ON FUNCTION es.set_aside FROM public;
