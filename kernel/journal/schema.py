"""The tables of the journal, as steps from one version to the next.

Applied by the store when it opens. A step that was ever released is never changed: what comes later is a new one.
"""

from __future__ import annotations

FIRST = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,      -- grows with the time of acceptance
    program TEXT NOT NULL,
    owner TEXT NOT NULL,
    key TEXT,                    -- idempotency key, of the owner's choice
    call BLOB NOT NULL,          -- msgpack of ipc.syscalls.Submit
    submitted REAL NOT NULL,     -- seconds since the epoch, as is `ended`
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,    -- attempts over which the daemon died
    ended REAL,
    reason TEXT,                 -- as in ipc.syscalls.ExitStatus
    error TEXT,                  -- name of the error
    outcome BLOB                 -- msgpack of ipc.messages.Result or Failed
) STRICT;
CREATE INDEX pending ON tasks (id) WHERE ended IS NULL;
CREATE INDEX finished ON tasks (ended) WHERE ended IS NOT NULL;
CREATE UNIQUE INDEX keys ON tasks (owner, key) WHERE key IS NOT NULL;
CREATE TABLE stops (clean INTEGER NOT NULL) STRICT;  -- one row: whether the last daemon stopped in order
INSERT INTO stops VALUES (1);
"""

MIGRATIONS = [FIRST]  # number N brings version N to N + 1
