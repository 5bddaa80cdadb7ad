-- The PostgreSQL store's tables. `quarantine init` runs this file under an advisory lock, in one transaction; running
-- it again, or beside a portal at work, changes nothing. Each block below brings the schema from one version to the
-- next, so a later version is a block added at the end; what stands here is never edited after a release.
--
-- message, delivery, event and body_chunk are partitioned by UTC day. The key is the quarantine id itself, a UUIDv7
-- that begins with its millisecond, so a partition's bounds are the lowest ids of two midnights and everything that is
-- asked by id touches one day. Retention drops whole days, hence no foreign keys and no body shared across midnight.
-- Partitions are named message_YYYYMMDD, delivery_YYYYMMDD, …; the program makes them (portal/stores/postgres_days.py).

create table if not exists setting (
    name text primary key,
    value text not null
);

do $$
begin
    if exists (select from setting where name = 'schema_version' and value::int >= 1) then
        return;
    end if;

    create table message (
        id uuid primary key,
        body_id uuid not null,  -- the day's first message with the same bytes: its chunks are ours
        tier text not null,
        envelope_sender text,  -- '' is the null sender, null: not known
        subject text not null,
        header_from text not null,
        sender_folded text not null,  -- both, case-folded by the program: lower() may know only ASCII (locale C)
        queue_id text,
        message_id text,
        action text,
        score double precision,
        client_ip text,
        username text,
        symbols jsonb not null,  -- [[name, score, [option, …]], …]
        flags text[] not null,
        body_sha256 bytea not null,
        size_bytes bigint not null,
        has_8bit boolean not null
    ) partition by range (id);
    -- Hash: a third of a btree's size on 32 random bytes, and equality is all that is asked.
    create index on message using hash (body_sha256);
    create index on message (queue_id);

    create table delivery (
        message_id uuid not null,
        number int not null,
        recipient text not null,  -- identity: lower case
        address text not null,  -- as the envelope wrote it
        state text not null,
        state_at timestamptz not null,
        reason text not null default '',
        attempts int not null default 0,
        next_try_at timestamptz,
        lease uuid,  -- the claim's token while releasing
        announced_at timestamptz,
        primary key (message_id, number)
    ) partition by range (message_id);
    create index on delivery (recipient, message_id, number);
    create index on delivery (next_try_at) where state = 'releasing';
    create index on delivery (message_id) where state = 'requested';
    create index on delivery (recipient, message_id, number) where state = 'held' and announced_at is null;

    create sequence event_seq;
    create table event (  -- being held has no row: it is the id's millisecond
        message_id uuid not null,
        number int not null,
        seq bigint not null default nextval('event_seq'),
        at timestamptz not null,
        what text not null,
        who text not null,
        via text not null,
        address text not null,
        detail text not null,
        primary key (message_id, number, seq)
    ) partition by range (message_id);

    create table body_chunk (  -- pieces of one zstd stream
        body_id uuid not null,
        n int not null,
        data bytea not null,
        primary key (body_id, n)
    ) partition by range (body_id);
    alter table body_chunk alter column data set storage external;

    create table seen (  -- which mail is held already; not partitioned, since the day of its first coming is not known
        sameness bytea primary key,
        message_id uuid not null
    );
    create index on seen (message_id);

    create table recipient (
        recipient text primary key,
        address text not null default '',
        stopped_at timestamptz,
        links_valid_from timestamptz,
        news_since timestamptz,
        next_digest_at timestamptz,
        digest_id uuid,  -- of the digest begun and not yet sent; stays over a crash
        lease uuid,
        lease_until timestamptz
    );
    create index on recipient (news_since)
        where news_since is not null and stopped_at is null and next_digest_at is null;
    create index on recipient (next_digest_at) where news_since is not null and stopped_at is null;

    create table digest (
        id uuid primary key,
        recipient text not null,
        address text not null,
        issued_at timestamptz not null,
        sent_at timestamptz,
        message_ids uuid[] not null default '{}',
        numbers int[] not null default '{}'
    );
    create index on digest (recipient, issued_at) where sent_at is not null;
    create index on digest (issued_at);

    create table opening (
        id bigint generated always as identity primary key,
        recipient text not null,
        issued_at timestamptz not null,
        message_id uuid not null,
        number int not null,
        at timestamptz not null
    );
    create index on opening (recipient, issued_at, at);
    create index on opening (at);

    create table outgoing (
        id uuid primary key,
        address text not null,  -- '' is a blind
        mail bytea not null,
        attempts int not null default 0,
        queued_at timestamptz not null,
        next_try_at timestamptz not null,
        lease uuid
    );
    create index on outgoing (next_try_at);

    create table sign_in (  -- used ones stay for an hour: they count for the limits
        token_sha256 bytea primary key,
        code_sha256 bytea not null,
        browser_sha256 bytea not null,
        recipient text not null,
        client_ip text not null,
        created_at timestamptz not null,
        expires_at timestamptz not null,
        used_at timestamptz,
        wrong_codes int not null default 0
    );
    create index on sign_in (recipient, created_at);
    create index on sign_in (client_ip, created_at);
    create index on sign_in (browser_sha256, created_at);
    create index on sign_in (created_at);

    create table session (
        session_sha256 bytea primary key,
        recipient text not null,
        started_at timestamptz not null,
        used_at timestamptz not null
    );
    create index on session (used_at);

    insert into setting (name, value) values ('schema_version', '1');
end
$$;
