-- Money: what may be spent in a scope, what is spent and reserved there, and what is reserved for calls that are under way.
-- Nobody but es.append writes these tables. The facts are events; what is here is what the next append must know at once.

CREATE TABLE es.budgets (
  scope_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,       -- what streams and reservations refer to: rows are locked in its order
  scope    text COLLATE "C" NOT NULL UNIQUE,
  soft     bigint CHECK (soft >= 0),                              -- micro-USD, as everything here; NULL: no limit
  hard     bigint CHECK (hard >= soft),
  spent    bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
  reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  CHECK (hard >= 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);  -- every model call updates a few rows: keep those updates HOT

CREATE TABLE es.reservations (                                    -- open ones, and the few that were given back; settled ones are gone
  reservation_id uuid PRIMARY KEY,
  stream_id      text COLLATE "C" NOT NULL,
  run_id         uuid,
  task_id        uuid,
  amount         bigint NOT NULL CHECK (amount >= 0),
  since_us       bigint NOT NULL,                                 -- microseconds since 1970, by the writer's clock
  released_at    timestamptz                                      -- given back: a price that comes late is charged all the same
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX reservations_released ON es.reservations (released_at) WHERE released_at IS NOT NULL;

ALTER TABLE es.streams ADD COLUMN scopes bigint[];                -- bound when the stream is opened; NULL: what happens there is free
