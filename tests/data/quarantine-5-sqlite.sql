CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE message (
    id BLOB NOT NULL UNIQUE,
    sameness BLOB UNIQUE,               -- NULL once the same mail was held anew, this one's file being gone
    tier TEXT NOT NULL,
    envelope_sender TEXT,
    subject TEXT NOT NULL,
    header_from TEXT NOT NULL,
    queue_id TEXT,
    message_id TEXT,
    action TEXT,
    score REAL,
    client_ip TEXT,
    user TEXT,
    symbols TEXT NOT NULL,              -- see symbols.pack; rows of before have its JSON as text
    flags TEXT NOT NULL,                -- Flag values, a blank between
    body_sha256 BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    has_8bit INTEGER NOT NULL
);
CREATE TABLE unindexed (                -- messages, see word_index
    key INTEGER PRIMARY KEY,
    terms TEXT NOT NULL
);
CREATE INDEX message_queue_id ON message (queue_id, id) WHERE queue_id IS NOT NULL;
CREATE INDEX message_body ON message (body_sha256, tier);

CREATE TABLE delivery (
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'held',
    state_at INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER,
    claim BLOB,                         -- random, of the process that is releasing it
    announced_at INTEGER,
    digest_id BLOB,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE INDEX delivery_recipient ON delivery (recipient, message_id, number, state, announced_at);
CREATE INDEX delivery_due ON delivery (next_try_at) WHERE state = 'releasing';
CREATE INDEX delivery_acted ON delivery (message_id, number, state) WHERE state <> 'held';
CREATE INDEX delivery_waiting ON delivery (state, message_id, number) WHERE state IN ('requested', 'releasing');

CREATE TABLE event (                    -- being held has no row, the id tells when that was
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    what TEXT NOT NULL,
    who TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX event_delivery ON event (message_id, number);

CREATE TABLE told (                     -- who was told of a delivery under another name, or with others
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    reader TEXT NOT NULL,
    digest_id BLOB,
    PRIMARY KEY (message_id, number, reader)
) WITHOUT ROWID;
CREATE INDEX told_digest ON told (digest_id) WHERE digest_id IS NOT NULL;

CREATE TABLE person (
    recipient TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    stopped_at INTEGER,
    links_valid_from INTEGER,
    news_since INTEGER,
    next_digest_at INTEGER,
    preferences TEXT,                   -- JSON of what they chose (portal/model/schedule.py); NULL: nothing
    asked_at INTEGER,                   -- when they last asked for a digest out of turn
    failures INTEGER NOT NULL DEFAULT 0,
    failure TEXT NOT NULL DEFAULT '',   -- what the mail server said against their digest, until one goes out
    failed_at INTEGER,
    claim BLOB,
    claim_until INTEGER,
    digest_id BLOB                      -- of the digest begun and not yet finished, kept for another try
) WITHOUT ROWID;
CREATE INDEX person_due ON person (next_digest_at) WHERE news_since IS NOT NULL AND stopped_at IS NULL;

CREATE INDEX person_failing ON person (failed_at) WHERE failed_at IS NOT NULL;

CREATE TABLE digest (
    id BLOB PRIMARY KEY,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    sent_at INTEGER
) WITHOUT ROWID;
CREATE INDEX digest_recipient ON digest (recipient, issued_at) WHERE sent_at IS NOT NULL;
CREATE INDEX digest_issued_at ON digest (issued_at);

CREATE TABLE opening (
    recipient TEXT NOT NULL, issued_at INTEGER NOT NULL, message_id BLOB NOT NULL, number INTEGER NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX opening_digest ON opening (recipient, issued_at, at);
CREATE INDEX opening_at ON opening (at);

CREATE TABLE outgoing (
    id BLOB PRIMARY KEY, recipient TEXT NOT NULL, mail BLOB NOT NULL, queued_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try_at INTEGER NOT NULL, claim BLOB
);
CREATE INDEX outgoing_due ON outgoing (next_try_at);

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
PRAGMA user_version = 5;
