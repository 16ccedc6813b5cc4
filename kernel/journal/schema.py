"""The tables of the journal, as one migration from each version to the next.

The store applies them when it opens the file. A released migration is never changed, not even in its comments: a later
change is a new migration. `calls` also holds waits in progress, whose outcome is a deadline; "life" in a comment means
a run of the daemon.
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

SECOND = """
CREATE TABLE processes (         -- durable processes, and the children of such
    pid INTEGER PRIMARY KEY,
    task INTEGER NOT NULL,
    parent INTEGER NOT NULL,     -- pid; 0: the first process of the task
    program TEXT NOT NULL,
    version TEXT NOT NULL,       -- of the code with which it began
    durable INTEGER NOT NULL,
    epoch INTEGER NOT NULL,      -- twice the checkpoints so far
    state BLOB,                  -- msgpack of what the last one kept
    suspended INTEGER NOT NULL,
    status BLOB                  -- msgpack of ipc.syscalls.ExitStatus, once a child has ended
) STRICT;
CREATE INDEX processes_of_task ON processes (task);
CREATE INDEX children ON processes (parent);
CREATE TABLE calls (             -- completed system calls; of two with one key the later row counts
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    thread TEXT NOT NULL,        -- its path
    number INTEGER NOT NULL,
    call BLOB NOT NULL,          -- msgpack of kernel.durable.recorded_call.CallFingerprint
    outcome BLOB NOT NULL        -- msgpack of kernel.durable.recorded_call.Outcome
) STRICT;
CREATE INDEX calls_of_process ON calls (pid);
CREATE TABLE generations (       -- how far model calls have come that are not complete
    pid INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    thread TEXT NOT NULL,
    number INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    state BLOB NOT NULL,         -- msgpack of kernel.models.generation.GenerationSnapshot
    file INTEGER NOT NULL,       -- whether its keys and values are on disk
    PRIMARY KEY (pid, epoch, thread, number, sample)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (          -- what waits in durable mailboxes, in the order of its coming
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    message INTEGER NOT NULL,    -- its own id
    expires REAL,                -- seconds since the epoch
    envelope BLOB NOT NULL       -- msgpack of ipc.messages.Message
) STRICT;
CREATE INDEX messages_of_process ON messages (pid, message);
CREATE TABLE delivered (         -- the last message that a thread of a durable sender had in a durable mailbox
    pid INTEGER NOT NULL,
    sender INTEGER NOT NULL,
    thread TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (pid, sender, thread)
) STRICT, WITHOUT ROWID;
CREATE TABLE replies (           -- to calls of durable processes that have not taken them yet
    message INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,        -- the caller
    body BLOB NOT NULL
) STRICT;
CREATE INDEX replies_of_process ON replies (pid);
CREATE TABLE memory (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (pid, key)
) STRICT;
CREATE TABLE names (name TEXT PRIMARY KEY, pid INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX names_of_process ON names (pid);
CREATE TABLE subscriptions (
    pid INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (pid, pattern)
) STRICT, WITHOUT ROWID;
CREATE TABLE regions (           -- shared regions that were written as durable
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    owner TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;
CREATE TABLE counters (          -- one row: the highest number of each kind that was ever given out
    pid INTEGER NOT NULL,
    message INTEGER NOT NULL,
    version INTEGER NOT NULL     -- of a region: each life of the daemon has 2^32 of them
) STRICT;
INSERT INTO counters VALUES (0, 0, 0);
"""

THIRD = "ALTER TABLE processes ADD COLUMN priority INTEGER"  # NULL: the priority in the `Spawn` or `Submit` call

FOURTH = """
ALTER TABLE processes ADD COLUMN owed BLOB;  -- msgpack of the messages of calls not answered at the last checkpoint
CREATE INDEX delivered_by_sender ON delivered (sender);
"""

FIFTH = """
ALTER TABLE tasks ADD COLUMN trial INTEGER NOT NULL DEFAULT 1;    -- see kernel.journal.suspects
ALTER TABLE tasks ADD COLUMN alone INTEGER NOT NULL DEFAULT 0;    -- crashes while it ran and all others were held back
ALTER TABLE stops ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;  -- in a row
ALTER TABLE stops ADD COLUMN late INTEGER NOT NULL DEFAULT 0;     -- of these, crashes after all trials of suspects
ALTER TABLE stops ADD COLUMN started REAL NOT NULL DEFAULT 0;     -- when tasks last restarted, since the epoch
"""

MIGRATIONS = [FIRST, SECOND, THIRD, FOURTH, FIFTH]  # the migration at index N brings version N to N + 1
