"""Tables of the file store's SQLite database. `migrations` upgrades older ones.

Ids are the UUID's 16 bytes, which sort by time; times are microseconds since 1970 UTC; states are State's values.
Tables and columns have the same names in the PostgreSQL store (quarantine.sql).
"""

from __future__ import annotations

import sqlite3

# Table message has a rowid, since its rows are long, and long rows in an index tree (WITHOUT ROWID) use a page each.
# The rowid is computed from the id (`word_index.key`), for the tables words_…, which are created on demand.
_TABLES = """
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
    has_8bit INTEGER NOT NULL,
    threshold REAL,                     -- the score at which the action begins
    from_count INTEGER,                 -- mailboxes of all From fields; NULL: held before version 7
    scan TEXT,                          -- JSON of the last virus scan, see scans; NULL: none was asked for
    attachments TEXT                    -- names of attachments, each in a line; NULL: not read
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
CREATE INDEX event_at ON event (at);

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
    digest_id BLOB,                     -- of the digest claimed and not yet sent; kept after a crash
    stop_mailed_at INTEGER,             -- when a one-click unsubscription was last confirmed by mail
    devices_valid_from INTEGER,         -- before this, buttons pressed in a browser do not make it a known device
    notices INTEGER NOT NULL DEFAULT 0, -- whether mail held for the recipient sets notice_at
    notice_at INTEGER,                  -- when their unannounced mail is next searched for wanted messages
    noticed_until INTEGER,              -- mail held before was searched
    notice_id BLOB                      -- of the notice begun and not yet sent; kept after a crash
) WITHOUT ROWID;
-- With all columns of its condition, so that counting the due digests for a health check reads nothing but the index.
CREATE INDEX recipient_due ON recipient (next_digest_at, news_since, stopped_at)
    WHERE news_since IS NOT NULL AND stopped_at IS NULL;
CREATE INDEX recipient_failing ON recipient (failed_at) WHERE failed_at IS NOT NULL;
CREATE INDEX recipient_notice ON recipient (notice_at)
    WHERE notice_at IS NOT NULL AND news_since IS NOT NULL AND stopped_at IS NULL;

CREATE TABLE digest (
    id BLOB PRIMARY KEY,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    sent_at INTEGER,
    is_notice INTEGER NOT NULL DEFAULT 0,
    listed TEXT                         -- deliveries that the mail of an unsettled claim lists, in JSON
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
    wrong_codes INTEGER NOT NULL DEFAULT 0, used_at INTEGER,
    mailbox TEXT NOT NULL DEFAULT '',   -- the recipient without an address extension, for the rate limits
    client_56 TEXT NOT NULL DEFAULT '', -- networks of client_ip, or client_ip itself
    client_48 TEXT NOT NULL DEFAULT '',
    requested_for TEXT NOT NULL DEFAULT '', -- see shared/sign_ins.py: 'known', 'local', 'decoy', 'foreign'
    destination TEXT NOT NULL DEFAULT ''   -- the page to show after signing in
) WITHOUT ROWID;
CREATE INDEX sign_in_mailbox ON sign_in (mailbox, created_at);
CREATE INDEX sign_in_client_ip ON sign_in (client_ip, created_at);
CREATE INDEX sign_in_client_56 ON sign_in (client_56, created_at);
CREATE INDEX sign_in_client_48 ON sign_in (client_48, created_at);
CREATE INDEX sign_in_browser ON sign_in (browser_sha256, created_at);
CREATE INDEX sign_in_created_at ON sign_in (created_at);

CREATE TABLE password_try (             -- wrong passwords, and checks that have not ended; see shared/passwords.py
    id BLOB PRIMARY KEY, mailbox TEXT NOT NULL, client_ip TEXT NOT NULL, client_56 TEXT NOT NULL,
    client_48 TEXT NOT NULL, is_local INTEGER NOT NULL, tried_at INTEGER NOT NULL,
    checked_until INTEGER               -- the end of the check's lease; NULL: the password was wrong
) WITHOUT ROWID;
CREATE INDEX password_try_mailbox ON password_try (mailbox, tried_at);
CREATE INDEX password_try_client_ip ON password_try (client_ip, tried_at);
CREATE INDEX password_try_client_56 ON password_try (client_56, tried_at);
CREATE INDEX password_try_client_48 ON password_try (client_48, tried_at);
CREATE INDEX password_try_tried_at ON password_try (tried_at);

CREATE TABLE idempotency_key (          -- requests of the API, see contracts/idempotency.py
    key_sha256 BLOB PRIMARY KEY, request_sha256 BLOB NOT NULL, begun_at INTEGER NOT NULL,
    answer BLOB                         -- NULL: it is being answered
) WITHOUT ROWID;
CREATE INDEX idempotency_key_begun_at ON idempotency_key (begun_at);

CREATE TABLE session (
    session_sha256 BLOB PRIMARY KEY, recipient TEXT NOT NULL, started_at INTEGER NOT NULL, used_at INTEGER NOT NULL,
    client TEXT NOT NULL DEFAULT '',    -- StartedSession.client
    staff_until INTEGER,                -- the end of its use of the console; NULL: it was ended
    method TEXT NOT NULL DEFAULT 'mailed-link', -- Method.name
    method_subject TEXT NOT NULL DEFAULT '',    -- Method.subject
    method_session TEXT NOT NULL DEFAULT '',    -- Method.session
    authenticated_at INTEGER,           -- when the person last proved who they are; NULL: not known
    factor_given INTEGER NOT NULL DEFAULT 0     -- the second factor, for the console
) WITHOUT ROWID;
CREATE INDEX session_used_at ON session (used_at);
CREATE INDEX session_method ON session (method, method_subject) WHERE method_subject <> '';
CREATE INDEX session_recipient ON session (recipient);

CREATE TABLE kept_form (                -- posted after its session had ended, see SignIns.keep_form
    recipient TEXT PRIMARY KEY, browser_sha256 BLOB NOT NULL, form TEXT NOT NULL, kept_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kept_form_kept_at ON kept_form (kept_at);

CREATE TABLE job (                      -- background jobs, see shared.jobs
    id BLOB PRIMARY KEY, kind TEXT NOT NULL, arguments TEXT NOT NULL, actor TEXT NOT NULL, via TEXT NOT NULL,
    address TEXT NOT NULL, created_at INTEGER NOT NULL,
    not_before INTEGER NOT NULL,        -- of the next claim; while the job is claimed: the end of its lease
    lease BLOB, tries INTEGER NOT NULL DEFAULT 0, progress TEXT NOT NULL DEFAULT '', command TEXT, outcome TEXT,
    finished_at INTEGER                 -- NULL: waiting or running
) WITHOUT ROWID;
CREATE INDEX job_waiting ON job (kind, not_before) WHERE finished_at IS NULL;
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE rule (                     -- allow and block rules, see model/rule.py; removed ones are kept for a while
    id BLOB PRIMARY KEY,
    scope TEXT NOT NULL,                -- identity of a recipient, '@' and a domain of recipients, or '*': the site
    sender TEXT NOT NULL,               -- address, domain or network
    effect TEXT NOT NULL,               -- Effect
    binding INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    actor TEXT NOT NULL,                -- Actor.who
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    message_id BLOB,                    -- the message it was made from
    expires_at INTEGER,
    note TEXT NOT NULL DEFAULT '',
    hits INTEGER NOT NULL DEFAULT 0,    -- deliveries that it decided
    last_hit_at INTEGER,
    removed_at INTEGER,                 -- NULL: in use
    removed_by TEXT,                    -- Actor.who
    removed_via TEXT,
    removed_address TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX rule_in_use ON rule (scope, sender) WHERE removed_at IS NULL;
CREATE INDEX rule_scope ON rule (scope, id);
CREATE INDEX rule_blocks ON rule (expires_at) WHERE removed_at IS NULL AND effect = 'block';
CREATE INDEX rule_removed ON rule (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX rule_expires ON rule (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE domain_value (             -- what administrators set for domains; replaced values are kept for a while
    id BLOB PRIMARY KEY,
    domain TEXT NOT NULL,
    name TEXT NOT NULL,                 -- of the setting
    value TEXT,                         -- NULL: the value of the settings file applies again
    set_at INTEGER NOT NULL,
    actor TEXT NOT NULL,                -- Actor.who
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    replaced_at INTEGER                 -- NULL: in use
) WITHOUT ROWID;
CREATE UNIQUE INDEX domain_value_in_use ON domain_value (domain, name) WHERE replaced_at IS NULL;
CREATE INDEX domain_value_replaced ON domain_value (replaced_at) WHERE replaced_at IS NOT NULL;

CREATE TABLE staff (                    -- roles that were given to people, see model/staff.py
    person TEXT NOT NULL,               -- identity
    role TEXT NOT NULL,                 -- Role
    domain TEXT NOT NULL,               -- '': all mail
    given_at INTEGER NOT NULL,
    actor TEXT NOT NULL,                -- Actor.who
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    source TEXT NOT NULL DEFAULT '',    -- Grant.source
    group_name TEXT NOT NULL DEFAULT '', -- Grant.group
    expires_at INTEGER,
    PRIMARY KEY (person, role, domain, source, group_name)
) WITHOUT ROWID;

CREATE TABLE token (                    -- API tokens, see model/token.py; those that ended are kept for a while
    id BLOB PRIMARY KEY,
    secret_sha256 BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,                -- identity
    role TEXT NOT NULL,                 -- Role
    domain TEXT NOT NULL,               -- '': all mail
    scope TEXT NOT NULL,                -- Scope
    created_at INTEGER NOT NULL,
    actor TEXT NOT NULL,                -- Actor.who
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;

CREATE TABLE second_factor (            -- of staff, see model/second_factor.py
    person TEXT PRIMARY KEY,            -- identity
    salt BLOB NOT NULL,
    key_fingerprint TEXT NOT NULL,      -- of the link key from which the secret is derived
    created_at INTEGER NOT NULL,
    recovery TEXT NOT NULL,             -- hashes of the recovery codes that were not used, with spaces between them
    last_step INTEGER NOT NULL DEFAULT 0, -- of the last right code
    tries INTEGER NOT NULL DEFAULT 0,   -- wrong codes of the app since the last right one
    tried_at INTEGER                    -- the last wrong one
) WITHOUT ROWID;

CREATE TABLE vote (                     -- what people say that messages are, see model/vote.py
    id BLOB PRIMARY KEY,
    campaign BLOB NOT NULL,
    person TEXT NOT NULL,               -- Actor.who
    label TEXT NOT NULL,                -- Label
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX vote_of_person ON vote (campaign, person);
CREATE INDEX vote_person ON vote (person, at);
CREATE INDEX vote_at ON vote (at);

CREATE TABLE audit (                    -- what people did, see model/audit.py; rows are never changed
    id BLOB PRIMARY KEY,
    at INTEGER NOT NULL,
    act TEXT NOT NULL,                  -- Act or EventKind
    actor TEXT NOT NULL,                -- Actor.who, always with a name
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    subject TEXT NOT NULL,              -- a recipient's identity, or a domain
    domain TEXT NOT NULL,               -- of the subject, '' for what concerns all
    message_id BLOB,
    number INTEGER,
    detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX audit_actor ON audit (actor, id);
CREATE INDEX audit_act ON audit (act, id);
CREATE INDEX audit_subject ON audit (subject, id);
CREATE INDEX audit_domain ON audit (domain, id);
CREATE INDEX audit_message ON audit (message_id, id) WHERE message_id IS NOT NULL;
CREATE TRIGGER audit_append_only BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TABLE facet (                    -- what staff search for and group by; written after Rspamd got its answer
    key INTEGER PRIMARY KEY,            -- rowid of the message
    tier TEXT NOT NULL,
    score REAL,
    action TEXT NOT NULL,               -- lower case, '': not known
    size_bytes INTEGER NOT NULL,
    sender_domain TEXT NOT NULL,        -- '': not known
    symbols BLOB NOT NULL               -- pairs of 4 octets each: symbol_name.id, and the score in hundredths
);
CREATE INDEX facet_score ON facet (score, key);
CREATE TABLE symbol_name (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE stale_facet (              -- messages that changed, so that their row of facet is written again
    seq INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL
);
CREATE TABLE daily_count (              -- statistics, which outlive the messages, see model/statistics.py
    domain TEXT NOT NULL,               -- of recipients, '': all together
    part TEXT NOT NULL,                 -- Part
    day TEXT NOT NULL,                  -- 2026-01-31, in UTC
    outcome TEXT NOT NULL,              -- Outcome
    name TEXT NOT NULL,                 -- of the tier, symbol, sender's domain or delay
    number INTEGER NOT NULL,
    points INTEGER NOT NULL DEFAULT 0,  -- of a symbol in all these deliveries, in hundredths
    PRIMARY KEY (domain, part, day, outcome, name)
) WITHOUT ROWID;
CREATE INDEX daily_count_part ON daily_count (part, day)
"""


def create(connection: sqlite3.Connection) -> None:
    """Create all tables in an empty database. Raises sqlite3.Error."""
    run(connection, _TABLES)


def run(connection: sqlite3.Connection, script: str) -> None:
    """Execute a script statement by statement, in the transaction of the caller. Raises sqlite3.Error."""
    for statement in script.split(";\n"):  # `executescript` would commit first
        connection.execute(statement)
