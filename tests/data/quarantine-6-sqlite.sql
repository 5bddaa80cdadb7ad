CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE message (
    id BLOB NOT NULL UNIQUE,
    dedup_key BLOB UNIQUE,              -- NULL once its file is missing and the same mail was held again
    tier TEXT NOT NULL,
    envelope_sender TEXT,
    subject TEXT NOT NULL,
    header_from TEXT NOT NULL,
    queue_id TEXT,
    message_id TEXT,
    action TEXT,
    score REAL,
    client_ip TEXT,
    username TEXT,
    packed_symbols TEXT NOT NULL,       -- see symbols.pack; rows of versions before 4 have the JSON as text
    flags TEXT NOT NULL,                -- Flag values, separated by spaces
    body_sha256 BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    has_8bit INTEGER NOT NULL
);
CREATE TABLE unindexed (                -- terms to be indexed, see word_index
    key INTEGER PRIMARY KEY,
    terms TEXT NOT NULL
);
CREATE INDEX message_queue_id ON message (queue_id, id) WHERE queue_id IS NOT NULL;
CREATE INDEX message_body ON message (body_sha256, tier);

CREATE TABLE delivery (
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    recipient TEXT NOT NULL,            -- identity
    address TEXT NOT NULL,              -- as in the envelope
    state TEXT NOT NULL DEFAULT 'held',
    state_at INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER,
    release_lease BLOB,                 -- the claim's token while releasing
    announced_at INTEGER,
    digest_id BLOB,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE INDEX delivery_recipient ON delivery (recipient, message_id, number, state, announced_at);
CREATE INDEX delivery_due ON delivery (next_try_at) WHERE state = 'releasing';
CREATE INDEX delivery_acted ON delivery (message_id, number, state) WHERE state <> 'held';
CREATE INDEX delivery_waiting ON delivery (state, message_id, number) WHERE state IN ('requested', 'releasing');

CREATE TABLE event (                    -- without `held`, whose time is in the id
    seq INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,                 -- EventKind
    actor TEXT NOT NULL,                -- Actor.who
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX event_delivery ON event (message_id, number);

CREATE TABLE announced_to (             -- readers notified of a delivery under another name, or read by several
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    reader TEXT NOT NULL,
    digest_id BLOB,
    PRIMARY KEY (message_id, number, reader)
) WITHOUT ROWID;
CREATE INDEX announced_to_digest ON announced_to (digest_id) WHERE digest_id IS NOT NULL;

CREATE TABLE recipient (
    recipient TEXT PRIMARY KEY,         -- identity
    address TEXT NOT NULL,
    stopped_at INTEGER,
    links_valid_from INTEGER,
    news_since INTEGER,
    next_digest_at INTEGER,
    preferences TEXT,                   -- JSON (portal/model/schedule.py); NULL: no preferences
    asked_at INTEGER,                   -- when they last requested a digest
    failures INTEGER NOT NULL DEFAULT 0, -- failed attempts since a digest was last sent
    failure TEXT NOT NULL DEFAULT '',   -- the mail server's answer to the last failed attempt
    failed_at INTEGER,
    lease BLOB,
    lease_until INTEGER,
    digest_id BLOB                      -- of the digest claimed and not yet sent; kept after a crash
) WITHOUT ROWID;
CREATE INDEX recipient_due ON recipient (next_digest_at, news_since)
    WHERE news_since IS NOT NULL AND stopped_at IS NULL;
CREATE INDEX recipient_failing ON recipient (failed_at) WHERE failed_at IS NOT NULL;

CREATE TABLE digest (
    id BLOB PRIMARY KEY,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    sent_at INTEGER
) WITHOUT ROWID;
CREATE INDEX digest_recipient ON digest (recipient, issued_at) WHERE sent_at IS NOT NULL;
CREATE INDEX digest_issued_at ON digest (issued_at);

CREATE TABLE link_open (
    id INTEGER PRIMARY KEY, recipient TEXT NOT NULL, issued_at INTEGER NOT NULL, message_id BLOB NOT NULL,
    number INTEGER NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX link_open_digest ON link_open (recipient, issued_at, at);
CREATE INDEX link_open_at ON link_open (at);

CREATE TABLE outbox (
    id BLOB PRIMARY KEY, address TEXT NOT NULL, mail BLOB NOT NULL, queued_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try_at INTEGER NOT NULL, lease BLOB
);
CREATE INDEX outbox_due ON outbox (next_try_at);

CREATE TABLE sign_in (
    token_sha256 BLOB PRIMARY KEY, code_sha256 BLOB NOT NULL, browser_sha256 BLOB NOT NULL, recipient TEXT NOT NULL,
    client_ip TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    wrong_codes INTEGER NOT NULL DEFAULT 0, used_at INTEGER
) WITHOUT ROWID;
CREATE INDEX sign_in_recipient ON sign_in (recipient, created_at);
CREATE INDEX sign_in_client_ip ON sign_in (client_ip, created_at);
CREATE INDEX sign_in_browser ON sign_in (browser_sha256, created_at);
CREATE INDEX sign_in_created_at ON sign_in (created_at);

CREATE TABLE session (
    session_sha256 BLOB PRIMARY KEY, recipient TEXT NOT NULL, started_at INTEGER NOT NULL, used_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX session_used_at ON session (used_at);
PRAGMA user_version = 6;
