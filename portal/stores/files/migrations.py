"""Migrations of the file store's database, by the schema version that they lead to."""

from __future__ import annotations

import sqlite3

from portal.stores.files.schema import run

OLDEST = 4  # the oldest version that can be upgraded

# By target version. A new version is a new entry; entries never change after a release.
_MIGRATIONS = {
    5: "CREATE INDEX message_body ON message (body_sha256, tier)",
    6: """
INSERT INTO setting VALUES ('store.merge_spellings', '');

ALTER TABLE message RENAME COLUMN sameness TO dedup_key;
ALTER TABLE message RENAME COLUMN user TO username;
ALTER TABLE message RENAME COLUMN symbols TO packed_symbols;
ALTER TABLE delivery RENAME COLUMN claim TO release_lease;

ALTER TABLE event RENAME TO event_5;
DROP INDEX event_delivery;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY, message_id BLOB NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL,
    kind TEXT NOT NULL, actor TEXT NOT NULL, via TEXT NOT NULL, address TEXT NOT NULL, detail TEXT NOT NULL
);
INSERT INTO event (seq, message_id, number, at, kind, actor, via, address, detail)
    SELECT rowid, message_id, number, at, what, who, via, address, detail FROM event_5;
DROP TABLE event_5;
CREATE INDEX event_delivery ON event (message_id, number);

ALTER TABLE told RENAME TO announced_to;
DROP INDEX told_digest;
CREATE INDEX announced_to_digest ON announced_to (digest_id) WHERE digest_id IS NOT NULL;

ALTER TABLE person RENAME TO recipient;
ALTER TABLE recipient RENAME COLUMN claim TO lease;
ALTER TABLE recipient RENAME COLUMN claim_until TO lease_until;
DROP INDEX person_due;
DROP INDEX person_failing;
CREATE INDEX recipient_due ON recipient (next_digest_at, news_since)
    WHERE news_since IS NOT NULL AND stopped_at IS NULL;
CREATE INDEX recipient_failing ON recipient (failed_at) WHERE failed_at IS NOT NULL;

CREATE TABLE link_open (
    id INTEGER PRIMARY KEY, recipient TEXT NOT NULL, issued_at INTEGER NOT NULL, message_id BLOB NOT NULL,
    number INTEGER NOT NULL, at INTEGER NOT NULL
);
INSERT INTO link_open SELECT rowid, recipient, issued_at, message_id, number, at FROM opening;
DROP TABLE opening;
CREATE INDEX link_open_digest ON link_open (recipient, issued_at, at);
CREATE INDEX link_open_at ON link_open (at);

ALTER TABLE outgoing RENAME TO outbox;
ALTER TABLE outbox RENAME COLUMN recipient TO address;
ALTER TABLE outbox RENAME COLUMN claim TO lease;
DROP INDEX outgoing_due;
CREATE INDEX outbox_due ON outbox (next_try_at)
""",
    7: """
ALTER TABLE message ADD COLUMN scan TEXT;
ALTER TABLE message ADD COLUMN threshold REAL;
ALTER TABLE message ADD COLUMN from_count INTEGER;
ALTER TABLE message ADD COLUMN attachments TEXT;
CREATE TABLE job (
    id BLOB PRIMARY KEY, kind TEXT NOT NULL, arguments TEXT NOT NULL, actor TEXT NOT NULL, via TEXT NOT NULL,
    address TEXT NOT NULL, created_at INTEGER NOT NULL, not_before INTEGER NOT NULL, lease BLOB,
    tries INTEGER NOT NULL DEFAULT 0, progress TEXT NOT NULL DEFAULT '', command TEXT, outcome TEXT, finished_at INTEGER
) WITHOUT ROWID;
CREATE INDEX job_waiting ON job (kind, not_before) WHERE finished_at IS NULL;
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;
ALTER TABLE session ADD COLUMN client TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN staff_until INTEGER;
ALTER TABLE session ADD COLUMN method TEXT NOT NULL DEFAULT 'mailed-link';
ALTER TABLE session ADD COLUMN method_subject TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN method_session TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN authenticated_at INTEGER;
ALTER TABLE session ADD COLUMN factor_given INTEGER NOT NULL DEFAULT 0;
CREATE INDEX session_method ON session (method, method_subject) WHERE method_subject <> '';
CREATE INDEX session_recipient ON session (recipient);
CREATE TABLE kept_form (
    recipient TEXT PRIMARY KEY, browser_sha256 BLOB NOT NULL, form TEXT NOT NULL, kept_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kept_form_kept_at ON kept_form (kept_at);
ALTER TABLE recipient ADD COLUMN stop_mailed_at INTEGER;
ALTER TABLE recipient ADD COLUMN devices_valid_from INTEGER;
ALTER TABLE recipient ADD COLUMN notices INTEGER NOT NULL DEFAULT 0;
ALTER TABLE recipient ADD COLUMN notice_at INTEGER;
ALTER TABLE recipient ADD COLUMN noticed_until INTEGER;
ALTER TABLE recipient ADD COLUMN notice_id BLOB;
CREATE INDEX recipient_notice ON recipient (notice_at)
    WHERE notice_at IS NOT NULL AND news_since IS NOT NULL AND stopped_at IS NULL;
ALTER TABLE digest ADD COLUMN is_notice INTEGER NOT NULL DEFAULT 0;
ALTER TABLE digest ADD COLUMN listed TEXT;
ALTER TABLE sign_in ADD COLUMN mailbox TEXT NOT NULL DEFAULT '';
ALTER TABLE sign_in ADD COLUMN client_56 TEXT NOT NULL DEFAULT '';
ALTER TABLE sign_in ADD COLUMN client_48 TEXT NOT NULL DEFAULT '';
ALTER TABLE sign_in ADD COLUMN requested_for TEXT NOT NULL DEFAULT '';
ALTER TABLE sign_in ADD COLUMN destination TEXT NOT NULL DEFAULT '';
DROP INDEX sign_in_recipient;
CREATE INDEX sign_in_mailbox ON sign_in (mailbox, created_at);
CREATE INDEX sign_in_client_56 ON sign_in (client_56, created_at);
CREATE INDEX sign_in_client_48 ON sign_in (client_48, created_at);
DROP INDEX recipient_due;
CREATE INDEX recipient_due ON recipient (next_digest_at, news_since, stopped_at)
    WHERE news_since IS NOT NULL AND stopped_at IS NULL;
CREATE TABLE rule (
    id BLOB PRIMARY KEY,
    scope TEXT NOT NULL,
    sender TEXT NOT NULL,
    effect TEXT NOT NULL,
    binding INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    message_id BLOB,
    expires_at INTEGER,
    note TEXT NOT NULL DEFAULT '',
    hits INTEGER NOT NULL DEFAULT 0,
    last_hit_at INTEGER,
    removed_at INTEGER,
    removed_by TEXT,
    removed_via TEXT,
    removed_address TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX rule_in_use ON rule (scope, sender) WHERE removed_at IS NULL;
CREATE INDEX rule_scope ON rule (scope, id);
CREATE INDEX rule_blocks ON rule (expires_at) WHERE removed_at IS NULL AND effect = 'block';
CREATE INDEX rule_removed ON rule (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX rule_expires ON rule (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE domain_value (
    id BLOB PRIMARY KEY,
    domain TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT,
    set_at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    replaced_at INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX domain_value_in_use ON domain_value (domain, name) WHERE replaced_at IS NULL;
CREATE INDEX domain_value_replaced ON domain_value (replaced_at) WHERE replaced_at IS NOT NULL;
CREATE TABLE staff (
    person TEXT NOT NULL,
    role TEXT NOT NULL,
    domain TEXT NOT NULL,
    given_at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    source TEXT NOT NULL DEFAULT '',
    group_name TEXT NOT NULL DEFAULT '',
    expires_at INTEGER,
    PRIMARY KEY (person, role, domain, source, group_name)
) WITHOUT ROWID;
CREATE TABLE token (
    id BLOB PRIMARY KEY,
    secret_sha256 BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    domain TEXT NOT NULL,
    scope TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE TABLE second_factor (
    person TEXT PRIMARY KEY,
    salt BLOB NOT NULL,
    key_fingerprint TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    recovery TEXT NOT NULL,
    last_step INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    tried_at INTEGER
) WITHOUT ROWID;
CREATE TABLE password_try (
    id BLOB PRIMARY KEY,
    mailbox TEXT NOT NULL,
    client_ip TEXT NOT NULL,
    client_56 TEXT NOT NULL,
    client_48 TEXT NOT NULL,
    is_local INTEGER NOT NULL, tried_at INTEGER NOT NULL,
    checked_until INTEGER
) WITHOUT ROWID;
CREATE INDEX password_try_mailbox ON password_try (mailbox, tried_at);
CREATE INDEX password_try_client_ip ON password_try (client_ip, tried_at);
CREATE INDEX password_try_client_56 ON password_try (client_56, tried_at);
CREATE INDEX password_try_client_48 ON password_try (client_48, tried_at);
CREATE INDEX password_try_tried_at ON password_try (tried_at);
CREATE TABLE idempotency_key (
    key_sha256 BLOB PRIMARY KEY, request_sha256 BLOB NOT NULL, begun_at INTEGER NOT NULL, answer BLOB
) WITHOUT ROWID;
CREATE INDEX idempotency_key_begun_at ON idempotency_key (begun_at);
CREATE TABLE vote (
    id BLOB PRIMARY KEY,
    campaign BLOB NOT NULL,
    person TEXT NOT NULL,
    label TEXT NOT NULL,
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX vote_of_person ON vote (campaign, person);
CREATE INDEX vote_person ON vote (person, at);
CREATE INDEX vote_at ON vote (at);
CREATE TABLE audit (
    id BLOB PRIMARY KEY,
    at INTEGER NOT NULL,
    act TEXT NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    subject TEXT NOT NULL,
    domain TEXT NOT NULL,
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
CREATE TABLE facet (
    key INTEGER PRIMARY KEY,
    tier TEXT NOT NULL,
    score REAL,
    action TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sender_domain TEXT NOT NULL,
    symbols BLOB NOT NULL
);
CREATE INDEX facet_score ON facet (score, key);
CREATE TABLE symbol_name (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE stale_facet (
    seq INTEGER PRIMARY KEY,
    message_id BLOB NOT NULL
);
CREATE TABLE daily_count (
    domain TEXT NOT NULL,
    part TEXT NOT NULL,
    day TEXT NOT NULL,
    outcome TEXT NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    points INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (domain, part, day, outcome, name)
) WITHOUT ROWID;
CREATE INDEX daily_count_part ON daily_count (part, day);
CREATE INDEX event_at ON event (at)
""",
}


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Upgrade the tables from the previous version to this one. Raises sqlite3.Error."""
    run(connection, _MIGRATIONS[version])
