"""Migrations of the PostgreSQL store, by the schema version that they lead to.

`quarantine init` runs the missing migrations, then quarantine.sql, in one transaction. A running program of the
previous version continues to hold mail: it calls `hold_mail`, which quarantine.sql replaces. Its other statements may
fail until it is restarted. A new version is a new entry here; entries never change after a release.
"""

from __future__ import annotations

from typing import LiteralString

OLDEST = 4  # the oldest version that can be upgraded

MIGRATIONS: dict[int, LiteralString] = {
    # New partitions get the index automatically; `partitions.build_indexes` builds it for the others, one by one.
    5: "create index if not exists message_body_idx on only message (body_sha256, tier)",
    6: """
        drop function if exists hold_message;
        drop function if exists hold_mail;

        alter table opening rename to link_open;
        alter table outgoing rename to outbox;
        alter table seen rename column sameness to dedup_key;
        alter table event rename column what to kind;
        alter table event rename column who to actor;
        -- So that an older program fails when it claims a release, not after sending, when it cannot record the event.
        alter table delivery rename column lease to release_lease;
        insert into setting (name, value) values ('store.merge_spellings', '');

        alter table told rename to announced_to;
        do $$
        declare
            partition text;
        begin
            for partition in
                select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
                where i.inhparent = 'announced_to'::regclass and c.relname ~ '^told_'
            loop
                execute format('alter table %I rename to %I', partition, replace(partition, 'told', 'announced_to'));
            end loop;
        end
        $$;
    """,
    7: """
        alter table message
            add column scan text, add column threshold double precision, add column from_count int,
            add column attachments text;
        create table job (
            id uuid primary key,
            kind text not null,
            arguments text not null,
            actor text not null,
            via text not null,
            address text not null,
            created_at timestamptz not null,
            not_before timestamptz not null,
            lease uuid,
            tries int not null default 0,
            progress text not null default '',
            command text,
            outcome text,
            finished_at timestamptz
        );
        create index on job (kind, not_before) where finished_at is null;
        create index on job (finished_at) where finished_at is not null;
        alter table session add column client text not null default '', add column staff_until timestamptz,
            add column method text not null default 'mailed-link',
            add column method_subject text not null default '', add column method_session text not null default '',
            add column authenticated_at timestamptz,
            add column factor_given boolean not null default false;
        create index on session (method, method_subject) where method_subject <> '';
        create index on session (recipient);
        create table kept_form (
            recipient text primary key,
            browser_sha256 bytea not null,
            form text not null,
            kept_at timestamptz not null
        );
        create index on kept_form (kept_at);
        alter table recipient add column stop_mailed_at timestamptz, add column devices_valid_from timestamptz;
        alter table recipient
            add column notices boolean not null default false, add column notice_at timestamptz,
            add column noticed_until timestamptz, add column notice_id uuid;
        create index on recipient (notice_at)
            where notice_at is not null and news_since is not null and stopped_at is null;
        alter table digest add column is_notice boolean not null default false;
        alter table digest add column listed text;
        alter table sign_in add column mailbox text not null default '';
        alter table sign_in add column client_56 text not null default '';
        alter table sign_in add column client_48 text not null default '';
        alter table sign_in add column requested_for text not null default '';
        alter table sign_in add column destination text not null default '';
        drop index if exists sign_in_recipient_created_at_idx;
        create index on sign_in (mailbox, created_at);
        create index on sign_in (client_56, created_at);
        create index on sign_in (client_48, created_at);
        create table seen_before (like seen including all);
        create table rule (
            id uuid primary key,
            scope text not null,
            sender text not null,
            effect text not null,
            binding boolean not null default false,
            created_at timestamptz not null,
            actor text not null,
            via text not null,
            address text not null,
            message_id uuid,
            expires_at timestamptz,
            note text not null default '',
            hits bigint not null default 0,
            last_hit_at timestamptz,
            removed_at timestamptz,
            removed_by text,
            removed_via text,
            removed_address text
        );
        create unique index on rule (scope, sender) where removed_at is null;
        create index on rule (scope, id);
        create index on rule (expires_at) where removed_at is null and effect = 'block';
        create index on rule (removed_at) where removed_at is not null;
        create index on rule (expires_at) where expires_at is not null;
        create table domain_value (
            id uuid primary key,
            domain text not null,
            name text not null,
            value text,
            set_at timestamptz not null,
            actor text not null,
            via text not null,
            address text not null,
            replaced_at timestamptz
        );
        create unique index on domain_value (domain, name) where replaced_at is null;
        create index on domain_value (replaced_at) where replaced_at is not null;
        create table staff (
            person text not null,
            role text not null,
            domain text not null,
            given_at timestamptz not null,
            actor text not null,
            via text not null,
            address text not null,
            source text not null default '',
            group_name text not null default '',
            expires_at timestamptz,
            primary key (person, role, domain, source, group_name)
        );
        create table token (
            id uuid primary key,
            secret_sha256 bytea not null unique,
            name text not null,
            owner text not null,
            role text not null,
            domain text not null,
            scope text not null,
            created_at timestamptz not null,
            actor text not null,
            via text not null,
            address text not null,
            expires_at timestamptz not null,
            used_at timestamptz,
            revoked_at timestamptz
        );
        create table second_factor (
            person text primary key,
            salt bytea not null,
            key_fingerprint text not null,
            created_at timestamptz not null,
            recovery text not null,
            last_step bigint not null default 0,
            tries int not null default 0,
            tried_at timestamptz
        );
        create table password_try (
            id uuid primary key,
            mailbox text not null,
            client_ip text not null,
            client_56 text not null,
            client_48 text not null,
            is_local boolean not null,
            tried_at timestamptz not null,
            checked_until timestamptz
        );
        create index on password_try (mailbox, tried_at);
        create index on password_try (client_ip, tried_at);
        create index on password_try (client_56, tried_at);
        create index on password_try (client_48, tried_at);
        create index on password_try (tried_at);
        create table idempotency_key (
            key_sha256 bytea primary key,
            request_sha256 bytea not null,
            begun_at timestamptz not null,
            answer bytea
        );
        create index on idempotency_key (begun_at);
        create table vote (
            id uuid primary key,
            campaign bytea not null,
            person text not null,
            label text not null,
            message_id uuid not null,
            number int not null,
            at timestamptz not null,
            unique (campaign, person)
        );
        create index on vote (person, at);
        create index on vote (at);
        create table audit (
            id uuid primary key,
            at timestamptz not null,
            act text not null,
            actor text not null,
            via text not null,
            address text not null,
            subject text not null,
            domain text not null,
            message_id uuid,
            number int,
            detail text not null
        );
        create index on audit (actor, id);
        create index on audit (act, id);
        create index on audit (subject, id);
        create index on audit (domain, id);
        create index on audit (message_id, id) where message_id is not null;
        create function refuse_change() returns trigger language plpgsql as $refuse$
        begin
            raise exception '% is append-only', tg_table_name;
        end
        $refuse$;
        create trigger append_only before update on audit for each row execute function refuse_change();
        create table facet (
            message_id uuid primary key,
            terms tsvector not null,
            tier text not null,
            score double precision,
            action text not null,
            size_bytes bigint not null,
            sender_domain text not null,
            symbols bytea not null
        ) partition by range (message_id);
        create index on facet using gin (terms) with (gin_pending_list_limit = 1024);
        create index on facet (score, message_id);
        create table symbol_name (
            id int generated always as identity primary key,
            name text not null unique
        );
        create table stale_facet (
            seq bigint generated always as identity primary key,
            message_id uuid not null
        );
        create table daily_count (
            domain text not null,
            part text not null,
            day text not null,
            outcome text not null,
            name text not null,
            number bigint not null,
            points bigint not null default 0,
            primary key (domain, part, day, outcome, name)
        );
        create index on daily_count (part, day);
        create index event_at_idx on only event (at);
    """,
}

SCHEMA_VERSION = max(MIGRATIONS)  # of both engines
