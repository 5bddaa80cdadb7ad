-- The PostgreSQL store's tables, at schema version 7. `quarantine init` runs this file under an advisory lock, in one
-- transaction, after the migrations of portal/stores/postgres/migrations.py. Running it again, also while the portal
-- runs, only replaces the functions.
--
-- message, delivery, event, body_chunk, announced_to and facet are partitioned by ranges of UTC days. The key is the quarantine
-- id itself, a UUIDv7 that begins with its millisecond, so a partition's bounds are the lowest ids of two midnights, and
-- queries by id read one partition. Retention drops whole partitions, hence no foreign keys and no body shared across
-- midnight. A partition of one day is named message_YYYYMMDD, one of more days message_from_YYYYMMDD;
-- portal/stores/postgres/partitions.py creates them.
-- Tables and columns have the same names in the file store (portal/stores/files/schema.py).

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
        body_id uuid not null,  -- of the body's chunks: derived from the day and the body's SHA-256
        tier text not null,
        envelope_sender text,  -- '': the null sender, null: not known
        subject text not null,
        header_from text not null,
        terms tsvector not null,  -- for searches, see portal/stores/search.py
        queue_id text,
        message_id text,
        action text,
        score double precision,
        client_ip text,
        username text,
        symbols jsonb,  -- of rows written before version 4: [[name, score, [option, …]], …]
        packed_symbols bytea,  -- of all other rows, see portal/stores/symbols.py
        flags text[] not null,
        body_sha256 bytea not null,
        size_bytes bigint not null,
        has_8bit boolean not null,
        threshold double precision,  -- the score at which the action begins
        from_count int,  -- mailboxes of all From fields; null: held before schema version 7
        scan text,  -- JSON of the last virus scan (portal/stores/scans.py); null: none was asked for
        attachments text  -- names of attachments, each in a line; null: not read
    ) partition by range (id);
    -- Finds the copies of a mail that arrives again with a worse verdict.
    create index message_body_idx on message (body_sha256, tier);
    create index on message (left(queue_id, 100));  -- a btree rejects values above 2,704 octets
    -- New entries wait in a list of at most 1 MB, which each search reads, so that holding a mail does not wait for the
    -- tree.
    create index on message using gin (terms) with (gin_pending_list_limit = 1024);

    create table delivery (
        message_id uuid not null,
        number int not null,
        recipient text not null,  -- identity: lower case
        address text not null,  -- as in the envelope
        state text not null,
        state_at timestamptz not null,
        reason text not null default '',
        attempts int not null default 0,
        next_try_at timestamptz,
        release_lease uuid,  -- the claim's token while releasing
        announced_at timestamptz,
        primary key (message_id, number)
    ) partition by range (message_id);
    create index on delivery (recipient, message_id, number);
    create index on delivery (next_try_at) where state = 'releasing';
    create index on delivery (message_id) where state = 'requested';
    create index on delivery (message_id, number) where state <> 'held';
    create index on delivery (recipient, message_id, number) where state = 'held' and announced_at is null;
    create index on delivery (recipient, message_id) where state = 'released';

    create sequence event_seq;
    create table event (  -- the event of being held has no row: its time is the id's millisecond
        message_id uuid not null,
        number int not null,
        seq bigint not null default nextval('event_seq'),
        at timestamptz not null,
        kind text not null,  -- EventKind
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        detail text not null,
        primary key (message_id, number, seq)
    ) partition by range (message_id);
    create index event_at_idx on event (at);

    create table body_chunk (  -- pieces of one zstd stream
        body_id uuid not null,
        n int not null,
        data bytea not null,
        primary key (body_id, n)
    ) partition by range (body_id);
    alter table body_chunk alter column data set storage external;

    -- The mail that is held, in two generations (portal/stores/postgres/partitions.py). Not partitioned by day, since a
    -- repeated mail's first day is not known and each partition would be searched. Keys may outlive their messages.
    create table seen (
        dedup_key bytea primary key,
        message_id uuid not null
    );
    create index on seen (message_id);
    create table seen_before (like seen including all);

    create table recipient (
        recipient text primary key,  -- identity
        address text not null default '',
        stopped_at timestamptz,
        links_valid_from timestamptz,
        news_since timestamptz,
        next_digest_at timestamptz,
        preferences text,  -- JSON of the recipient's preferences (portal/model/schedule.py); null: all defaults
        asked_at timestamptz,  -- when the recipient last requested a digest outside the schedule
        digest_id uuid,  -- of the digest that was begun and not yet sent; survives a crash
        lease uuid,
        lease_until timestamptz,
        failures int not null default 0,  -- failed tries to send digests since the last one that was sent
        failure text not null default '',  -- the mail server's reply to the last failed try
        failed_at timestamptz,
        stop_mailed_at timestamptz,  -- when a one-click unsubscription was last confirmed by mail
        devices_valid_from timestamptz,  -- before this, buttons pressed in a browser do not make it a known device
        notices boolean not null default false,  -- whether mail held for the recipient sets notice_at
        notice_at timestamptz,  -- when their unannounced mail is next searched for wanted messages
        noticed_until timestamptz,  -- mail held before was searched
        notice_id uuid  -- of the notice that was begun and not yet sent; survives a crash
    );
    create index on recipient (news_since)
        where news_since is not null and stopped_at is null and next_digest_at is null;
    create index on recipient (next_digest_at) where news_since is not null and stopped_at is null;
    create index on recipient (failed_at) where failed_at is not null;
    create index on recipient (notice_at) where notice_at is not null and news_since is not null and stopped_at is null;

    create table digest (
        id uuid primary key,
        recipient text not null,
        address text not null,
        issued_at timestamptz not null,
        sent_at timestamptz,
        message_ids uuid[] not null default '{}',
        numbers int[] not null default '{}',
        is_notice boolean not null default false,
        listed text  -- deliveries that the mail of an unsettled claim lists, in JSON; null: it was not begun
    );
    create index on digest (recipient, issued_at, id) where sent_at is not null;
    create index on digest (issued_at);

    create table link_open (
        id bigint generated always as identity primary key,
        recipient text not null,
        issued_at timestamptz not null,
        message_id uuid not null,
        number int not null,
        at timestamptz not null
    );
    create index on link_open (recipient, issued_at, at);
    create index on link_open (at);

    create table outbox (
        id uuid primary key,
        address text not null,  -- '': a decoy, which is never sent
        mail bytea not null,
        attempts int not null default 0,
        queued_at timestamptz not null,
        next_try_at timestamptz not null,
        lease uuid
    );
    create index on outbox (next_try_at);

    create table sign_in (  -- used rows are kept for a day: the rate limits count them for an hour
        token_sha256 bytea primary key,
        code_sha256 bytea not null,
        browser_sha256 bytea not null,
        recipient text not null,
        client_ip text not null,
        created_at timestamptz not null,
        expires_at timestamptz not null,
        used_at timestamptz,
        wrong_codes int not null default 0,
        mailbox text not null default '',  -- the recipient without an address extension, for the rate limits
        client_56 text not null default '',  -- networks of client_ip, or client_ip itself
        client_48 text not null default '',
        requested_for text not null default '',  -- see shared/sign_ins.py: 'known', 'local', 'decoy', 'foreign'
        destination text not null default ''  -- the page to show after signing in
    );
    create index on sign_in (mailbox, created_at);
    create index on sign_in (client_ip, created_at);
    create index on sign_in (client_56, created_at);
    create index on sign_in (client_48, created_at);
    create index on sign_in (browser_sha256, created_at);
    create index on sign_in (created_at);

    create table password_try (  -- wrong passwords, and checks that have not ended
        id uuid primary key,
        mailbox text not null,
        client_ip text not null,
        client_56 text not null,
        client_48 text not null,
        is_local boolean not null,
        tried_at timestamptz not null,
        checked_until timestamptz  -- the end of the check's lease; null: the password was wrong
    );
    create index on password_try (mailbox, tried_at);
    create index on password_try (client_ip, tried_at);
    create index on password_try (client_56, tried_at);
    create index on password_try (client_48, tried_at);
    create index on password_try (tried_at);

    create table idempotency_key (  -- requests of the API, see portal/stores/contracts/idempotency.py
        key_sha256 bytea primary key,
        request_sha256 bytea not null,
        begun_at timestamptz not null,
        answer bytea  -- null: it is being answered
    );
    create index on idempotency_key (begun_at);

    create table session (
        session_sha256 bytea primary key,
        recipient text not null,
        started_at timestamptz not null,
        used_at timestamptz not null,
        client text not null default '',  -- StartedSession.client
        staff_until timestamptz,  -- the end of its use of the console; null: it was ended
        method text not null default 'mailed-link',  -- Method.name
        method_subject text not null default '',  -- Method.subject
        method_session text not null default '',  -- Method.session
        authenticated_at timestamptz,  -- when the person last proved who they are; null: not known
        factor_given boolean not null default false  -- the second factor, for the console
    );
    create index on session (used_at);
    create index on session (method, method_subject) where method_subject <> '';
    create index on session (recipient);

    create table kept_form (  -- posted after its session had ended, see SignIns.keep_form
        recipient text primary key,
        browser_sha256 bytea not null,
        form text not null,
        kept_at timestamptz not null
    );
    create index on kept_form (kept_at);

    create table announced_to (  -- readers notified of a delivery for another identity, or for one with several readers
        message_id uuid not null,
        number int not null,
        reader text not null,
        primary key (message_id, number, reader)
    ) partition by range (message_id);

    create table facet (  -- what staff search for and group by; written after Rspamd got its answer
        message_id uuid primary key,
        terms tsvector not null,  -- those of the message, and of portal/stores/facets.py
        tier text not null,
        score double precision,
        action text not null,  -- lower case, '': not known
        size_bytes bigint not null,
        sender_domain text not null,  -- '': not known
        symbols bytea not null  -- pairs of 4 octets each: symbol_name.id, and the score in hundredths
    ) partition by range (message_id);
    create index on facet using gin (terms) with (gin_pending_list_limit = 1024);
    create index on facet (score, message_id);

    create table symbol_name (
        id int generated always as identity primary key,
        name text not null unique
    );

    create table stale_facet (  -- messages that changed, so that their row of facet is written again
        seq bigint generated always as identity primary key,
        message_id uuid not null
    );

    create table job (  -- background jobs, see portal/stores/shared/jobs.py
        id uuid primary key,
        kind text not null,
        arguments text not null,  -- JSON
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        created_at timestamptz not null,
        not_before timestamptz not null,  -- of the next claim; while the job is claimed: the end of its lease
        lease uuid,
        tries int not null default 0,
        progress text not null default '',  -- JSON
        command text,  -- Command: what a person wants the process that runs it to do
        outcome text,
        finished_at timestamptz  -- null: waiting or running
    );
    create index on job (kind, not_before) where finished_at is null;
    create index on job (finished_at) where finished_at is not null;

    create table rule (  -- allow and block rules, see portal/model/rule.py; removed ones are kept for a while
        id uuid primary key,
        scope text not null,  -- identity of a recipient, '@' and a domain of recipients, or '*': the site
        sender text not null,  -- address, domain or network
        effect text not null,  -- Effect
        binding boolean not null default false,
        created_at timestamptz not null,
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        message_id uuid,  -- the message it was made from
        expires_at timestamptz,
        note text not null default '',
        hits bigint not null default 0,  -- deliveries that it decided
        last_hit_at timestamptz,
        removed_at timestamptz,  -- null: in use
        removed_by text,  -- Actor.who
        removed_via text,
        removed_address text
    );
    create unique index on rule (scope, sender) where removed_at is null;
    create index on rule (scope, id);
    create index on rule (expires_at) where removed_at is null and effect = 'block';
    create index on rule (removed_at) where removed_at is not null;
    create index on rule (expires_at) where expires_at is not null;

    create table domain_value (  -- what administrators set for domains; replaced values are kept for a while
        id uuid primary key,
        domain text not null,
        name text not null,  -- of the setting
        value text,  -- null: the value of the settings file applies again
        set_at timestamptz not null,
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        replaced_at timestamptz  -- null: in use
    );
    create unique index on domain_value (domain, name) where replaced_at is null;
    create index on domain_value (replaced_at) where replaced_at is not null;

    create table staff (  -- roles that were given to people, see portal/model/staff.py
        person text not null,  -- identity
        role text not null,  -- Role
        domain text not null,  -- '': all mail
        given_at timestamptz not null,
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        source text not null default '',  -- Grant.source
        group_name text not null default '',  -- Grant.group
        expires_at timestamptz,
        primary key (person, role, domain, source, group_name)
    );

    create table token (  -- API tokens, see portal/model/token.py; those that ended are kept for a while
        id uuid primary key,
        secret_sha256 bytea not null unique,
        name text not null,
        owner text not null,  -- identity
        role text not null,  -- Role
        domain text not null,  -- '': all mail
        scope text not null,  -- Scope
        created_at timestamptz not null,
        actor text not null,  -- Actor.who
        via text not null,
        address text not null,
        expires_at timestamptz not null,
        used_at timestamptz,
        revoked_at timestamptz
    );

    create table second_factor (  -- of staff, see portal/model/second_factor.py
        person text primary key,  -- identity
        salt bytea not null,
        key_fingerprint text not null,  -- of the link key from which the secret is derived
        created_at timestamptz not null,
        recovery text not null,  -- hashes of the recovery codes that were not used, with spaces between them
        last_step bigint not null default 0,  -- of the last right code
        tries int not null default 0,  -- wrong codes of the app since the last right one
        tried_at timestamptz  -- the last wrong one
    );

    create table vote (  -- what people say that messages are, see portal/model/vote.py
        id uuid primary key,
        campaign bytea not null,
        person text not null,  -- Actor.who
        label text not null,  -- Label
        message_id uuid not null,
        number int not null,
        at timestamptz not null,
        unique (campaign, person)
    );
    create index on vote (person, at);
    create index on vote (at);

    create table audit (  -- what people did, see portal/model/audit.py; rows are never changed
        id uuid primary key,
        at timestamptz not null,
        act text not null,  -- Act or EventKind
        actor text not null,  -- Actor.who, always with a name
        via text not null,
        address text not null,
        subject text not null,  -- a recipient's identity, or a domain
        domain text not null,  -- of the subject, '' for what concerns all
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

    create table daily_count (  -- statistics, which outlive the messages, see portal/model/statistics.py
        domain text not null,  -- of recipients, '': all together
        part text not null,  -- Part
        day text not null,  -- 2026-01-31, in UTC
        outcome text not null,  -- Outcome
        name text not null,  -- of the tier, symbol, sender's domain or delay
        number bigint not null,
        points bigint not null default 0,  -- of a symbol in all these deliveries, in hundredths
        primary key (domain, part, day, outcome, name)
    );
    create index on daily_count (part, day);

    insert into setting (name, value) values ('schema_version', '7');
end
$$;

-- Holds a message in one call. Returns its id, or the id of the same mail that is held already, or null if that one was
-- removed (call again), or 'rules' if there are rules in use and `unless_rules` is true: then nothing was held. If the
-- caller has to add the body's further chunks, their body_id follows after a space. A function, since its plans are
-- cached: planning the same as one statement cost more than executing it, and behind PgBouncer nothing can be prepared.
-- The result is one text, since a row costs the server 11 µs more.
create or replace function hold_mail(
    wait_ms int, new_id uuid, new_place uuid, new_dedup_key bytea, held_at timestamptz, recipients text[],
    addresses text[], notified text[], notified_addresses text[], tier text, envelope_sender text, subject text,
    header_from text, terms text[], queue_id text, message_id text, action text, score double precision,
    client_ip text, username text, packed_symbols bytea, flags text[], sha256 bytea, size bigint, has_8bit boolean,
    threshold double precision, from_count int, scan text, scan_job uuid, starts text, unless_rules boolean,
    first_chunk bytea
) returns text language plpgsql as $hold$
declare
    held uuid;
    place uuid := new_place;
    shared boolean := false;
    is_new boolean := false;
begin
    if unless_rules and exists (select from rule r where r.removed_at is null) then
        return 'rules';
    end if;
    -- Set here, since the call is a transaction by itself. statement_timeout could no longer be set for it.
    perform set_config('lock_timeout', wait_ms::text, true);
    -- The older generation first, in the order in which partitions.py locks the two. A row lock is a write, so this
    -- commit waits for a synchronous standby, and with it for the commit that held the mail: that one may have ended its
    -- wait without the standby (a crash, pg_terminate_backend).
    select s.message_id into held from seen_before s where s.dedup_key = new_dedup_key for update;
    if not found then
        -- Waits for another transaction that inserts the same key, so that one of the two is first.
        insert into seen values (new_dedup_key, new_id) on conflict do nothing;
        is_new := found;
        if not is_new then
            select s.message_id into held from seen s where s.dedup_key = new_dedup_key for update;
        end if;
    end if;
    if not is_new then
        -- Deliveries are the first that a purge removes, and some may have ended earlier than others. A day may also
        -- have been dropped by hand.
        if held is not null and (
            select count(*) from delivery d join message m on m.id = d.message_id
            where d.message_id = held and d.state <> 'expired'
        ) < cardinality(recipients) then
            -- Answering "known" would lose this mail.
            delete from seen_before s where s.dedup_key = new_dedup_key and s.message_id = held;
            delete from seen s where s.dedup_key = new_dedup_key and s.message_id = held;
            held := null;
        end if;
        return held;
    end if;
    insert into body_chunk values (place, 0, first_chunk) on conflict do nothing;
    if not found then
        -- A body_id has 106 bits of a SHA-256. A different body with the same body_id gets a body_id of its own.
        shared := exists (select from body_chunk b where b.body_id = place and b.n = 0 and b.data = first_chunk);
        if not shared then
            place := new_id;
            insert into body_chunk values (place, 0, first_chunk);
        end if;
    end if;
    insert into message (
        id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id, message_id, action, score,
        client_ip, username, packed_symbols, flags, body_sha256, size_bytes, has_8bit, threshold,
        from_count, scan
    ) values (
        new_id, place, tier, envelope_sender, subject, header_from, array_to_tsvector(terms), queue_id, message_id,
        action, score, client_ip, username, packed_symbols, flags, sha256, size, has_8bit,
        threshold, from_count, scan
    );
    -- Searches of staff look for new messages in the last minutes only (shared/facet_index.py). Messages of a host whose
    -- clock is behind this server's are noted, so that they are found as well.
    if held_at between clock_timestamp() - interval '1 day' and clock_timestamp() - interval '2 minutes' then
        insert into stale_facet (message_id) values (new_id);
    end if;
    if scan_job is not null then
        insert into job (id, kind, arguments, actor, via, address, created_at, not_before)
        values (scan_job, 'scan', json_build_object('message', new_id)::text, 'system', '', '', held_at, held_at);
    end if;
    if starts is null then
        insert into delivery (message_id, number, recipient, address, state, state_at)
        select new_id, d.number - 1, d.recipient, d.address, 'held', held_at
        from unnest(recipients, addresses) with ordinality d (recipient, address, number);
    else
        insert into delivery (message_id, number, recipient, address, state, state_at, next_try_at)
        select new_id, d.number - 1, d.recipient, d.address, coalesce(s.state, 'held'), held_at,
            case when s.state = 'releasing' then held_at end
        from unnest(recipients, addresses) with ordinality d (recipient, address, number)
        left join json_to_recordset(starts::json) s (number int, state text) on s.number = d.number - 1;
        insert into event (message_id, number, at, kind, actor, via, address, detail)
        select new_id, s.number, held_at, s.kind, s.actor, s.via, s.address, s.detail
        from json_to_recordset(starts::json) s (
            number int, kind text, actor text, via text, address text, detail text
        );
    end if;
    -- The row of a recipient with unannounced messages is only read, so that ingest does not wait for the row lock of a
    -- recipient with much mail. `notified` is sorted, so that two calls cannot deadlock.
    for i in 1 .. cardinality(notified) loop
        if not exists (
            select from recipient r
            where r.recipient = notified[i] and r.address = notified_addresses[i] and r.news_since is not null
                and not (r.notices and (r.notice_at is null or r.notice_at > held_at))
        ) then
            insert into recipient (recipient, address, news_since) values (notified[i], notified_addresses[i], held_at)
            on conflict on constraint recipient_pkey do update
            set address = excluded.address, news_since = coalesce(recipient.news_since, excluded.news_since),
                notice_at = case when recipient.notices then least(recipient.notice_at, excluded.news_since) end;
        end if;
    end loop;
    return case when shared then new_id::text else new_id || ' ' || place end;
end
$hold$;

-- The same as programs of schema versions up to 6 call it: they hold mail until they are restarted after an upgrade.
create or replace function hold_mail(
    wait_ms int, new_id uuid, new_place uuid, new_dedup_key bytea, held_at timestamptz, recipients text[],
    addresses text[], notified text[], notified_addresses text[], tier text, envelope_sender text, subject text,
    header_from text, terms text[], queue_id text, message_id text, action text, score double precision,
    client_ip text, username text, packed_symbols bytea, flags text[], sha256 bytea, size bigint, has_8bit boolean,
    first_chunk bytea
) returns text language plpgsql as $hold$
begin
    return hold_mail(
        wait_ms, new_id, new_place, new_dedup_key, held_at, recipients, addresses, notified,
        notified_addresses, tier, envelope_sender, subject, header_from, terms, queue_id, message_id, action,
        score, client_ip, username, packed_symbols, flags, sha256, size, has_8bit, null, null, null, null, null,
        null, first_chunk
    );
end
$hold$;

-- Returns the ids of the next messages that are `held` or have these bytes, and have one of these tiers, in order and
-- separated by spaces. A function, since its plan is cached: planning over the partitions of a month takes longer than
-- the search.
create or replace function copies_of(held uuid, sha256 bytea, tiers text[], after_id uuid, at_most int) returns text
language plpgsql stable as $copies$
begin
    return array_to_string(array(
        select m.id from message m where m.id = held and m.tier = any(tiers) and m.id > after_id
        union
        select m.id from message m where m.body_sha256 = sha256 and m.tier = any(tiers) and m.id > after_id
        order by id limit at_most
    ), ' ');
end
$copies$;

-- Returns the numbers of `Stats`, and the values of two settings. A function, since its plan is cached: planning over
-- the partitions of a month took 25 ms, for each health check.
create or replace function store_stats(
    moment timestamptz, heartbeat text, skipped text, out releases bigint, out requests bigint, out mails bigint,
    out jobs bigint, out failing bigint, out due bigint, out oldest_due_at timestamptz,
    out oldest_untried_at timestamptz, out heartbeat_at text, out not_indexed text
) language plpgsql stable as $stats$
begin
    -- One query for each state, since each has an index of its own.
    select count(*) into releases from delivery d where d.state = 'releasing';
    select count(*) into requests from delivery d where d.state = 'requested';
    select
        (select count(*) from outbox),
        (select count(*) from job j where j.finished_at is null),
        (select count(*) from recipient r where r.failed_at is not null),
        (select count(*) from recipient r
            where r.news_since is not null and r.stopped_at is null and r.next_digest_at <= moment),
        (select min(r.next_digest_at) from recipient r
            where r.news_since is not null and r.stopped_at is null and r.next_digest_at <= moment),
        (select min(r.next_digest_at) from recipient r
            where r.news_since is not null and r.stopped_at is null and r.next_digest_at <= moment
            and r.failed_at is null),
        (select s.value from setting s where s.name = heartbeat),
        (select s.value from setting s where s.name = skipped)
        into mails, jobs, failing, due, oldest_due_at, oldest_untried_at, heartbeat_at, not_indexed;
end
$stats$;

-- Returns where the body of a message is, and its first chunk, which is null if it is missing.
create or replace function begin_body(
    message_id uuid, out body_id uuid, out body_sha256 bytea, out size_bytes bigint, out data bytea, out is_last boolean
) language plpgsql stable as $body$
begin
    select m.body_id, m.body_sha256, m.size_bytes into body_id, body_sha256, size_bytes
        from message m where m.id = begin_body.message_id;
    select c.data, not exists (select from body_chunk b where b.body_id = begin_body.body_id and b.n = 1)
        into data, is_last from body_chunk c where c.body_id = begin_body.body_id and c.n = 0;
end
$body$;

-- The functions below may find their rows in any partition. Each connection plans their statements once: planning takes
-- longer than executing, and behind PgBouncer in transaction mode nothing can be prepared. A generic plan does not know
-- how many rows the values have. So plans that read more rows than are wanted are excluded, and so is compiling (jit),
-- since the plan seems to read all partitions.

-- Returns the newest deliveries of these identities in one of these states, newest first, at most `at_most`: from the
-- delivery (low_id, low_number) on, and before the delivery (high_id, high_number). If `oldest_first`, the oldest ones in
-- the other direction.
create or replace function deliveries_of(
    identities text[], states text[], low_id uuid, low_number int, high_id uuid, high_number int, oldest_first boolean,
    at_most int
) returns setof delivery language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $deliveries$
begin
    if oldest_first then
        return query
            select d.* from unnest(identities) r (identity) cross join lateral (
                select * from delivery d where d.recipient = r.identity and d.state = any(states)
                and d.message_id >= low_id and (d.message_id, d.number) >= (low_id, low_number)
                and d.message_id <= high_id and (d.message_id, d.number) < (high_id, high_number)
                order by d.message_id, d.number limit at_most
            ) d order by d.message_id, d.number limit at_most;
    else
        return query
            select d.* from unnest(identities) r (identity) cross join lateral (
                select * from delivery d where d.recipient = r.identity and d.state = any(states)
                and d.message_id >= low_id and (d.message_id, d.number) >= (low_id, low_number)
                and d.message_id <= high_id and (d.message_id, d.number) < (high_id, high_number)
                order by d.message_id desc, d.number desc limit at_most
            ) d order by d.message_id desc, d.number desc limit at_most;
    end if;
end
$deliveries$;

-- Returns those of the first deliveries that `deliveries_of` returns whose messages have these words, with their messages:
-- each with its place among the `examined` first ones, and the last of these in any case. The words are compared with
-- `message.terms`, so this finds what the index finds. Null: all deliveries.
create or replace function first_with(
    words tsquery, identities text[], states text[], low_id uuid, low_number int, high_id uuid, high_number int,
    oldest_first boolean, examined int
) returns table (place bigint, is_found boolean, d delivery, m message)
language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off
as $first$
#variable_conflict use_column
begin
    return query
        select f.place, f.is_found, f.d, case when f.is_found then f.m end from (
            select n.place, coalesce(words is null or m.terms @@ words, false) and m.id is not null as is_found, n.d, m
            from (
                select row_number() over () as place, d
                from deliveries_of(
                    identities, states, low_id, low_number, high_id, high_number, oldest_first, examined
                ) d
            ) n left join message m on m.id = (n.d).message_id
        ) f where f.is_found or f.place = examined order by f.place;
end
$first$;

-- Returns the deliveries of these identities that `deliveries_of` would return and whose messages have these terms, with
-- their messages: at most `at_most`. The first ones, `compared` of them, are compared with `words`, which are those of the
-- terms; the others are found by the index, one partition first, then two, four and so on, in batches of messages. Ends
-- after `examined_max` messages, with a row that is not found: what follows its message was not examined. One statement
-- for all of this, since a page of the portal would otherwise wait for up to ten.
create or replace function search_of(
    terms tsquery, words tsquery, identities text[], states text[], low_id uuid, low_number int, high_id uuid,
    high_number int, oldest_first boolean, current_id uuid, compared int, at_first int, batch int, examined_max int,
    at_most int
) returns table (place bigint, is_found boolean, d delivery, m message)
language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off
as $search$
declare
    r record;
    n int := 0;
    examined bigint := 0;
    step int := at_first;
    ids uuid[];
    edges uuid[];
    last int := 0;
    ahead int;
    since uuid;
    since_is text := '>=';
    below uuid;
    below_is text;
    direction text := case when oldest_first then 'asc' else 'desc' end;
begin
    while examined < compared loop
        step := least(step, compared - examined);
        place := examined;
        for r in select f.* from first_with(
            words, identities, states, low_id, low_number, high_id, high_number, oldest_first, step
        ) f loop
            place := examined + r.place;
            if oldest_first then
                low_id := (r.d).message_id;
                low_number := (r.d).number + 1;
            else
                high_id := (r.d).message_id;
                high_number := (r.d).number;
            end if;
            if r.is_found then
                is_found := true; d := r.d; m := r.m;
                return next;
                n := n + 1;
                if n = at_most then return; end if;
            end if;
        end loop;
        if place < examined + step then return; end if;  -- there are no more deliveries
        examined := place;
        step := 2 * step;
    end loop;
    since := low_id;
    below := high_id;
    below_is := case when high_number > 0 then '<=' else '<' end;
    -- The ends of partitions, in the direction of reading. `partitions_of` in portal/stores/postgres/partitions.py reads
    -- their bounds likewise.
    select array_agg(case when oldest_first then p.high else p.low end order by case when oldest_first then p.low end,
        p.low desc), count(*) filter (where p.low > current_id and not oldest_first) into edges, ahead from (
        select substr(b.bounds, 19, 36)::uuid as low, substr(b.bounds, 63, 36)::uuid as high from (
            select pg_get_expr(c.relpartbound, c.oid) as bounds
            from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'message'::regclass
        ) b
    ) p where p.low <= high_id and p.high > low_id;
    step := 1;
    while last < cardinality(edges) loop
        -- Partitions created in advance have mail only if a clock was ahead. They are read with the one of now.
        last := least(last + ahead + step, cardinality(edges));
        ahead := 0;
        step := 2 * step;
        if not oldest_first then
            since := greatest(edges[last], low_id);
        elsif edges[last] <= high_id then
            below := edges[last];
            below_is := '<';
        else
            below := high_id;
            below_is := case when high_number > 0 then '<=' else '<' end;
        end if;
        loop
            execute format('select array(select m.id from message m where m.terms @@ $1 and m.id %s $2 and m.id %s $3'
                ' order by m.id %s limit $4)', since_is, below_is, direction) into ids using terms, since, below, batch;
            exit when cardinality(ids) = 0;
            examined := examined + cardinality(ids);
            -- The deliveries first: of most ids they are another recipient's, or in another state.
            for r in execute format('with found as materialized (select d from delivery d'
                ' where d.message_id = any($1) and d.recipient = any($2) and d.state = any($3)'
                ' and (d.message_id, d.number) >= ($4, $5) and (d.message_id, d.number) < ($6, $7)'
                ' order by d.message_id %1$s, d.number %1$s limit $8)'
                ' select f.d, m from found f join message m on m.id = (f.d).message_id'
                ' where m.id = any($1)'
                ' order by (f.d).message_id %1$s, (f.d).number %1$s', direction)
                using ids, identities, states, low_id, low_number, high_id, high_number, at_most - n
            loop
                place := examined; is_found := true; d := r.d; m := r.m;
                return next;
                n := n + 1;
                if n = at_most then return; end if;
            end loop;
            if oldest_first then
                since := ids[cardinality(ids)];
                since_is := '>';
            else
                below := ids[cardinality(ids)];
                below_is := '<';
            end if;
            if examined >= examined_max then
                place := examined; is_found := false; d := null; d.message_id := ids[cardinality(ids)]; d.number := 0;
                m := null;
                return next;
                return;
            end if;
            exit when cardinality(ids) < batch;
        end loop;
        if oldest_first then
            since := edges[last];
            since_is := '>=';
        else
            below := since;
            below_is := '<';
        end if;
    end loop;
end
$search$;

-- Returns those of the first deliveries that `deliveries_of` returns that may be near-duplicates of a message with this
-- body and From header, at most `at_most`: each with its place among the `examined` first ones, and the last of these in
-- any case.
create or replace function near_duplicates(
    identities text[], states text[], low_id uuid, low_number int, high_id uuid, high_number int, oldest_first boolean,
    examined int, sha256 bytea, from_header text, from_address text, at_most int
) returns table (
    place bigint, number int, recipient text, address text, state text, state_at timestamptz, reason text, attempts int,
    next_try_at timestamptz, announced_at timestamptz, m message
) language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off
as $near$
#variable_conflict use_column
begin
    return query
        select d.ordinality, d.number, d.recipient, d.address, d.state, d.state_at, d.reason, d.attempts, d.next_try_at,
            d.announced_at, m
        from deliveries_of(
            identities, states, low_id, low_number, high_id, high_number, oldest_first, examined
        ) with ordinality d
        join message m on m.id = d.message_id
        where d.ordinality = examined or m.body_sha256 = sha256 or m.header_from = from_header
        -- The collation C changes ASCII letters only, in every database.
        or strpos(lower(m.header_from collate "C"), from_address) > 0
        order by d.ordinality limit at_most;
end
$near$;

-- Returns how many of the newest deliveries of each of these identities are in each state, of `each_at_most` of them.
create or replace function states_of(identities text[], each_at_most int, since_id uuid, since_number int)
returns table (recipient text, state text, n bigint, n_since bigint) language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $states$
#variable_conflict use_column
begin
    return query
        select r.identity, d.state, count(*),
            count(*) filter (where (d.message_id, d.number) >= (since_id, since_number))
        from unnest(identities) r (identity) cross join lateral (
            select message_id, number, state from delivery where recipient = r.identity
            order by message_id desc, number desc limit each_at_most
        ) d group by r.identity, d.state;
end
$states$;

-- Returns the oldest held deliveries of each of these recipients that were not announced, with the recipient's number,
-- in order: at most `each_at_most` for each of them, and `at_most` in total. With `readers`, one for each recipient:
-- those that were not announced to that reader.
create or replace function unannounced(
    numbers int[], recipients text[], readers text[], each_at_most int, at_most int
) returns table (
    n int, message_id uuid, number int, recipient text, address text, state text, state_at timestamptz, reason text,
    attempts int, next_try_at timestamptz, announced_at timestamptz
) language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off
as $unannounced$
#variable_conflict use_column
begin
    if readers is null then
        return query
            select u.n, d.message_id, d.number, d.recipient, d.address, d.state, d.state_at, d.reason, d.attempts,
                d.next_try_at, d.announced_at
            from unnest(numbers, recipients) u (n, recipient) cross join lateral (
                select * from delivery d
                where d.recipient = u.recipient and d.state = 'held' and d.announced_at is null
                order by d.message_id, d.number limit each_at_most
            ) d order by u.n, d.message_id, d.number limit at_most;
    else
        return query
            select u.n, d.message_id, d.number, d.recipient, d.address, d.state, d.state_at, d.reason, d.attempts,
                d.next_try_at, d.announced_at
            from unnest(numbers, recipients, readers) u (n, recipient, reader) cross join lateral (
                select * from delivery d
                where d.recipient = u.recipient and d.state = 'held' and d.announced_at is null and not exists (
                    select from announced_to t
                    where t.message_id = d.message_id and t.number = d.number and t.reader = u.reader
                )
                order by d.message_id, d.number limit each_at_most
            ) d order by u.n, d.message_id, d.number limit at_most;
    end if;
end
$unannounced$;

-- Returns the From headers of the newest messages that were released to each of these recipients, newest first, at most
-- `each_at_most`.
create or replace function senders_released_to(recipients text[], each_at_most int)
returns table (recipient text, header_from text) language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off
as $released$
#variable_conflict use_column
begin
    return query
        select u.recipient, m.header_from from unnest(recipients) u (recipient) cross join lateral (
            select d.message_id from delivery d where d.recipient = u.recipient and d.state = 'released'
            order by d.message_id desc limit each_at_most
        ) d join message m on m.id = d.message_id order by u.recipient, d.message_id desc;
end
$released$;

-- Marks these deliveries as announced.
create or replace function mark_announced(at timestamptz, ids uuid[], numbers int[]) returns void language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off
as $mark$
begin
    update delivery d set announced_at = at from unnest(ids, numbers) u (id, number)
    where d.message_id = u.id and d.number = u.number and d.announced_at is null;
end
$mark$;
