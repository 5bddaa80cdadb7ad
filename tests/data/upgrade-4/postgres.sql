SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE FUNCTION public.hold_mail(wait_ms integer, new_id uuid, new_place uuid, new_sameness bytea, held_at timestamp with time zone, recipients text[], addresses text[], told text[], told_addresses text[], tier text, envelope_sender text, subject text, header_from text, terms text[], queue_id text, message_id text, action text, score double precision, client_ip text, username text, packed_symbols bytea, flags text[], sha256 bytea, size bigint, has_8bit boolean, first_chunk bytea) RETURNS text
    LANGUAGE plpgsql
    AS $$
    declare
        held uuid;
        place uuid := new_place;
        shared boolean := false;
    begin
        -- Here, since one statement is a transaction of its own, and statement_timeout could not be set in it any more.
        perform set_config('lock_timeout', wait_ms::text, true);
        -- Waits while another transaction is holding the same mail, so that one of them is first.
        insert into seen values (new_sameness, new_id) on conflict do nothing;
        if not found then
            select s.message_id into held from seen s where s.sameness = new_sameness;
            if held is not null and not exists (select from message m where m.id = held) then
                -- Somebody dropped that day by hand: saying "known" would lose this mail.
                delete from seen s where s.sameness = new_sameness and s.message_id = held;
                held := null;
            end if;
            return held;
        end if;
        insert into body_chunk values (place, 0, first_chunk) on conflict do nothing;
        if not found then
            -- A place is 106 bits of a SHA-256; whoever makes two mails with one place for both gets two places.
            shared := exists (select from body_chunk b where b.body_id = place and b.n = 0 and b.data = first_chunk);
            if not shared then
                place := new_id;
                insert into body_chunk values (place, 0, first_chunk);
            end if;
        end if;
        insert into message (
            id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id, message_id, action, score,
            client_ip, username, packed_symbols, flags, body_sha256, size_bytes, has_8bit
        ) values (
            new_id, place, tier, envelope_sender, subject, header_from, array_to_tsvector(terms), queue_id, message_id,
            action, score, client_ip, username, packed_symbols, flags, sha256, size, has_8bit
        );
        insert into delivery (message_id, number, recipient, address, state, state_at)
        select new_id, d.number - 1, d.recipient, d.address, 'held', held_at
        from unnest(recipients, addresses) with ordinality d (recipient, address, number);
        -- Who has news already is only looked at, so that ingest does not queue for the row of a much-mailed
        -- recipient; `told` is sorted, so that two calls never wait for each other crosswise.
        for i in 1 .. cardinality(told) loop
            if not exists (
                select from recipient r
                where r.recipient = told[i] and r.address = told_addresses[i] and r.news_since is not null
            ) then
                insert into recipient (recipient, address, news_since) values (told[i], told_addresses[i], held_at)
                on conflict on constraint recipient_pkey do update
                set address = excluded.address, news_since = coalesce(recipient.news_since, excluded.news_since);
            end if;
        end loop;
        return case when shared then new_id::text else new_id || ' ' || place end;
    end
    $$;
CREATE FUNCTION public.hold_message(wait_ms integer, new_id uuid, new_sameness bytea, held_at timestamp with time zone, recipients text[], addresses text[], told text[], told_addresses text[], tier text, envelope_sender text, subject text, header_from text, terms text[], queue_id text, message_id text, action text, score double precision, client_ip text, username text, symbols jsonb, flags text[], sha256 bytea, size bigint, has_8bit boolean, first_chunk bytea, OUT held uuid, OUT place uuid) RETURNS record
    LANGUAGE plpgsql
    AS $$
    begin
        held := split_part(hold_mail(
            wait_ms, new_id, new_id, new_sameness, held_at, recipients, addresses, told, told_addresses, tier,
            envelope_sender, subject, header_from, terms, queue_id, message_id, action, score, client_ip, username, null,
            flags, sha256, size, has_8bit, first_chunk
        ), ' ', 1)::uuid;
        if held = new_id then
            place := new_id;
            update message m set symbols = hold_message.symbols where m.id = new_id;
        end if;
    end
    $$;
SET default_tablespace = '';
CREATE TABLE public.body_chunk (
    body_id uuid NOT NULL,
    n integer NOT NULL,
    data bytea NOT NULL
)
PARTITION BY RANGE (body_id);
ALTER TABLE ONLY public.body_chunk ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE public.body_chunk_20261119 (
    body_id uuid NOT NULL,
    n integer NOT NULL,
    data bytea NOT NULL
);
ALTER TABLE ONLY public.body_chunk_20261119 ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE public.body_chunk_20261120 (
    body_id uuid NOT NULL,
    n integer NOT NULL,
    data bytea NOT NULL
);
ALTER TABLE ONLY public.body_chunk_20261120 ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE public.body_chunk_20261121 (
    body_id uuid NOT NULL,
    n integer NOT NULL,
    data bytea NOT NULL
);
ALTER TABLE ONLY public.body_chunk_20261121 ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE public.delivery (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    recipient text NOT NULL,
    address text NOT NULL,
    state text NOT NULL,
    state_at timestamp with time zone NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_try_at timestamp with time zone,
    lease uuid,
    announced_at timestamp with time zone
)
PARTITION BY RANGE (message_id);
CREATE TABLE public.delivery_20261119 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    recipient text NOT NULL,
    address text NOT NULL,
    state text NOT NULL,
    state_at timestamp with time zone NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_try_at timestamp with time zone,
    lease uuid,
    announced_at timestamp with time zone
);
CREATE TABLE public.delivery_20261120 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    recipient text NOT NULL,
    address text NOT NULL,
    state text NOT NULL,
    state_at timestamp with time zone NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_try_at timestamp with time zone,
    lease uuid,
    announced_at timestamp with time zone
);
CREATE TABLE public.delivery_20261121 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    recipient text NOT NULL,
    address text NOT NULL,
    state text NOT NULL,
    state_at timestamp with time zone NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_try_at timestamp with time zone,
    lease uuid,
    announced_at timestamp with time zone
);
CREATE TABLE public.digest (
    id uuid NOT NULL,
    recipient text NOT NULL,
    address text NOT NULL,
    issued_at timestamp with time zone NOT NULL,
    sent_at timestamp with time zone,
    message_ids uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    numbers integer[] DEFAULT '{}'::integer[] NOT NULL
);
CREATE SEQUENCE public.event_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE public.event (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    seq bigint DEFAULT nextval('public.event_seq'::regclass) NOT NULL,
    at timestamp with time zone NOT NULL,
    what text NOT NULL,
    who text NOT NULL,
    via text NOT NULL,
    address text NOT NULL,
    detail text NOT NULL
)
PARTITION BY RANGE (message_id);
CREATE TABLE public.event_20261119 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    seq bigint DEFAULT nextval('public.event_seq'::regclass) NOT NULL,
    at timestamp with time zone NOT NULL,
    what text NOT NULL,
    who text NOT NULL,
    via text NOT NULL,
    address text NOT NULL,
    detail text NOT NULL
);
CREATE TABLE public.event_20261120 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    seq bigint DEFAULT nextval('public.event_seq'::regclass) NOT NULL,
    at timestamp with time zone NOT NULL,
    what text NOT NULL,
    who text NOT NULL,
    via text NOT NULL,
    address text NOT NULL,
    detail text NOT NULL
);
CREATE TABLE public.event_20261121 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    seq bigint DEFAULT nextval('public.event_seq'::regclass) NOT NULL,
    at timestamp with time zone NOT NULL,
    what text NOT NULL,
    who text NOT NULL,
    via text NOT NULL,
    address text NOT NULL,
    detail text NOT NULL
);
CREATE TABLE public.message (
    id uuid NOT NULL,
    body_id uuid NOT NULL,
    tier text NOT NULL,
    envelope_sender text,
    subject text NOT NULL,
    header_from text NOT NULL,
    terms tsvector NOT NULL,
    queue_id text,
    message_id text,
    action text,
    score double precision,
    client_ip text,
    username text,
    symbols jsonb,
    flags text[] NOT NULL,
    body_sha256 bytea NOT NULL,
    size_bytes bigint NOT NULL,
    has_8bit boolean NOT NULL,
    packed_symbols bytea
)
PARTITION BY RANGE (id);
CREATE TABLE public.message_20261119 (
    id uuid NOT NULL,
    body_id uuid NOT NULL,
    tier text NOT NULL,
    envelope_sender text,
    subject text NOT NULL,
    header_from text NOT NULL,
    terms tsvector NOT NULL,
    queue_id text,
    message_id text,
    action text,
    score double precision,
    client_ip text,
    username text,
    symbols jsonb,
    flags text[] NOT NULL,
    body_sha256 bytea NOT NULL,
    size_bytes bigint NOT NULL,
    has_8bit boolean NOT NULL,
    packed_symbols bytea
);
CREATE TABLE public.message_20261120 (
    id uuid NOT NULL,
    body_id uuid NOT NULL,
    tier text NOT NULL,
    envelope_sender text,
    subject text NOT NULL,
    header_from text NOT NULL,
    terms tsvector NOT NULL,
    queue_id text,
    message_id text,
    action text,
    score double precision,
    client_ip text,
    username text,
    symbols jsonb,
    flags text[] NOT NULL,
    body_sha256 bytea NOT NULL,
    size_bytes bigint NOT NULL,
    has_8bit boolean NOT NULL,
    packed_symbols bytea
);
CREATE TABLE public.message_20261121 (
    id uuid NOT NULL,
    body_id uuid NOT NULL,
    tier text NOT NULL,
    envelope_sender text,
    subject text NOT NULL,
    header_from text NOT NULL,
    terms tsvector NOT NULL,
    queue_id text,
    message_id text,
    action text,
    score double precision,
    client_ip text,
    username text,
    symbols jsonb,
    flags text[] NOT NULL,
    body_sha256 bytea NOT NULL,
    size_bytes bigint NOT NULL,
    has_8bit boolean NOT NULL,
    packed_symbols bytea
);
CREATE TABLE public.opening (
    id bigint NOT NULL,
    recipient text NOT NULL,
    issued_at timestamp with time zone NOT NULL,
    message_id uuid NOT NULL,
    number integer NOT NULL,
    at timestamp with time zone NOT NULL
);
ALTER TABLE public.opening ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.opening_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.outgoing (
    id uuid NOT NULL,
    address text NOT NULL,
    mail bytea NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    queued_at timestamp with time zone NOT NULL,
    next_try_at timestamp with time zone NOT NULL,
    lease uuid
);
CREATE TABLE public.recipient (
    recipient text NOT NULL,
    address text DEFAULT ''::text NOT NULL,
    stopped_at timestamp with time zone,
    links_valid_from timestamp with time zone,
    news_since timestamp with time zone,
    next_digest_at timestamp with time zone,
    preferences text,
    asked_at timestamp with time zone,
    digest_id uuid,
    lease uuid,
    lease_until timestamp with time zone,
    failures integer DEFAULT 0 NOT NULL,
    failure text DEFAULT ''::text NOT NULL,
    failed_at timestamp with time zone
);
CREATE TABLE public.seen (
    sameness bytea NOT NULL,
    message_id uuid NOT NULL
);
CREATE TABLE public.session (
    session_sha256 bytea NOT NULL,
    recipient text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone NOT NULL
);
CREATE TABLE public.setting (
    name text NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.sign_in (
    token_sha256 bytea NOT NULL,
    code_sha256 bytea NOT NULL,
    browser_sha256 bytea NOT NULL,
    recipient text NOT NULL,
    client_ip text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone,
    wrong_codes integer DEFAULT 0 NOT NULL
);
CREATE TABLE public.told (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    reader text NOT NULL
)
PARTITION BY RANGE (message_id);
CREATE TABLE public.told_20261119 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    reader text NOT NULL
);
CREATE TABLE public.told_20261120 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    reader text NOT NULL
);
CREATE TABLE public.told_20261121 (
    message_id uuid NOT NULL,
    number integer NOT NULL,
    reader text NOT NULL
);
ALTER TABLE ONLY public.body_chunk ATTACH PARTITION public.body_chunk_20261119 FOR VALUES FROM ('01a1f11a-6000-0000-0000-000000000000') TO ('01a1f640-bc00-0000-0000-000000000000');
ALTER TABLE ONLY public.body_chunk ATTACH PARTITION public.body_chunk_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY public.body_chunk ATTACH PARTITION public.body_chunk_20261121 FOR VALUES FROM ('01a1fb67-1800-0000-0000-000000000000') TO ('01a2008d-7400-0000-0000-000000000000');
ALTER TABLE ONLY public.delivery ATTACH PARTITION public.delivery_20261119 FOR VALUES FROM ('01a1f11a-6000-0000-0000-000000000000') TO ('01a1f640-bc00-0000-0000-000000000000');
ALTER TABLE ONLY public.delivery ATTACH PARTITION public.delivery_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY public.delivery ATTACH PARTITION public.delivery_20261121 FOR VALUES FROM ('01a1fb67-1800-0000-0000-000000000000') TO ('01a2008d-7400-0000-0000-000000000000');
ALTER TABLE ONLY public.event ATTACH PARTITION public.event_20261119 FOR VALUES FROM ('01a1f11a-6000-0000-0000-000000000000') TO ('01a1f640-bc00-0000-0000-000000000000');
ALTER TABLE ONLY public.event ATTACH PARTITION public.event_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY public.event ATTACH PARTITION public.event_20261121 FOR VALUES FROM ('01a1fb67-1800-0000-0000-000000000000') TO ('01a2008d-7400-0000-0000-000000000000');
ALTER TABLE ONLY public.message ATTACH PARTITION public.message_20261119 FOR VALUES FROM ('01a1f11a-6000-0000-0000-000000000000') TO ('01a1f640-bc00-0000-0000-000000000000');
ALTER TABLE ONLY public.message ATTACH PARTITION public.message_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY public.message ATTACH PARTITION public.message_20261121 FOR VALUES FROM ('01a1fb67-1800-0000-0000-000000000000') TO ('01a2008d-7400-0000-0000-000000000000');
ALTER TABLE ONLY public.told ATTACH PARTITION public.told_20261119 FOR VALUES FROM ('01a1f11a-6000-0000-0000-000000000000') TO ('01a1f640-bc00-0000-0000-000000000000');
ALTER TABLE ONLY public.told ATTACH PARTITION public.told_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY public.told ATTACH PARTITION public.told_20261121 FOR VALUES FROM ('01a1fb67-1800-0000-0000-000000000000') TO ('01a2008d-7400-0000-0000-000000000000');
INSERT INTO public.body_chunk_20261119 VALUES
	('01a1f47e-2225-1019-56ef-b209cd6490cb', 0, '\x28b52ffd20877503007286171c604d75a846f59634b1112decc1d8be32a640b616a8009ec300f40a0ca980492ca42ecb0684f2c7e97e2235fd1d48ef3bc32896217ac41119a9026ec8ae9c427f4a7ab706b54a2c2eb746ea009e05deb8752427b865db6a6fb1bcda3b0404005333d5428f08e7980a8a12'),
	('01a1f60e-43f8-fb50-9002-ed75b8698cae', 0, '\x28b52ffd208d6d03009246171b604d75a846f596cb3522db49f8fdf425306c2d50013c8701e81518a980492ca42ecb06847288e97e2215bdcdd5dfbe3f1e8a65781e714446aa801bb22797ce9f82de4d9d4e88c5e5d6481dc0b3c0955b4672825bb6adf616cbabbd430400570bf5428f4927990a8a12'),
	('01a1f585-7c99-174b-fca7-fbdd646b3b50', 0, '\x28b52ffd208ba503009206192190a939ffffdb7f8429da852b7b8dd5769280b625430f0fbf0d4c49d3b868629801a980482ca42ecb06847207f3de13a9e8f0ea68dd9b46325986e78f465ca40af841f6d4d2b953d05fabf3126271b919a9037816b86a8b819cd096edd54eb1bcda1d0204005509ed428f29679ab28a12'),
	('01a1f3f1-6f9d-57fa-9e7f-56d5a0e891e6', 0, '\x28b52ffd20846d03006246171c506ddb4350a323a11680b63cf1aa80c8259c08335459ea4785e1d04d9880c92b602eba0684f207d3fd0466bf9622daee380a5d870e713c06a660dbad2796d09bd2bcf9419d9af574b98139705f813f4c319213d8a2acb82d7415b74304005107c5420774b34dad4509'),
	('01a1f178-9078-3222-420f-acd550e1930e', 0, '\x28b52ffd20907d0300a2c6171c506ddb80d6455aa805a02d4b14961390bce0c00c5596fa51613874139880c729602aba0644f2c7e2dc1398e9af3d8dd8b5cf300add870e71380c4cc1bac7ae9a42ef24dd71839c4accd1e506e6e09d05deb4b5444e688af2e25ee82eee430400593705430f6a67990a8a12'),
	('01a1f63d-8d23-03cf-413f-4311dc86da84', 0, '\x28b52ffd20846d03006246171c506ddb80d4e848a8058cb63cf1aa80c8259c08335459ea4785e1d04d9880c92b602eba0684f207d3fd0426c425d5daee380a5d871e713c06a660dbad2796d09bd2bcf9419d9af574b98139705f813f4c319213d8a2acb82d7415b74304005107c5420774b34dad4509'),
	('01a1f540-906f-d7c0-b717-045c063e3642', 0, '\x28b52ffd20846d03006246171c704b75c846dd96ab13dfc6cb4493970622ffb0ac01cb1cfe8de9e708a94924125297e5c241b9e3741f91da57a7f7bd6912cb10fdd1888bd40037644f2ea13f857937853a312c2e3746aa009e01aedc3a900fdcb26db5a7585eed190204005107c5420774b34dad4509'),
	('01a1f3fb-995a-c44f-c8a7-25edc8bc9f57', 0, '\x28b52ffd209f8d0300f246181b604b752831dbb4df253eabfed08aed9bd9e06729b5ac163ca05760ba49641274153e8583b903751fa1abdee8ecd1f4196a8e5f96041f99fe68cc856ee0b4745f70a547a3de8fa55eca4d3e8fa12b90778033d810e403a8f06b2f2af8b4170d0104004374aa862e32a0c4145b94'),
	('01a1f1ff-d411-f53f-357f-ffd812b308f9', 0, '\x28b52ffd20816d0300a2c6171c606bdb50d472dde4bbd29627a8ad25d867b3a1c9b350dc163cb0951c9889e2be461e0173d12d1c943b98d68ec054dcd7bee324741dfaa3f11698816d4e9d19a3b7d2bcad07356ed4d35d0c4c81bb02fc6189817cc0165d69b54237ad360403005668786c9a29ab2801'),
	('01a1f121-4820-6147-5653-fec129c5a5a5', 0, '\x28b52ffd208a7503008286171c604ddb50d4c848f848f9962502ae0d4d09ac69b394082a87016c25079880c92b602eba0684f207d3fd04e6119fb49eb6378d42d79d431c8f8129d876eb89a5f3a6a037474e27b49e2e373007ee2bf008538ce404b6282b6e0b5dc5ed1004005509e5420f29679ab28a12'),
	('01a1f132-f0ce-221c-28ea-6b466fa505c8', 0, '\x28b52ffd20877503007286171c704b75c872d50a4b29908d5dfea57c0cf9fdc3b2062c1fabd8f47304a980482ca42acb064472c779ef8954f5e5a8b3ee4da35886e88f25325205fc207b6a09dd25cc5f2bf412c3e272375207f02c70d5d6819cd094edd56eb1bcda1d0204005333d5428f08e7980a8a12'),
	('01a1f34f-027e-8dd4-b62c-111719f3e2c5', 0, '\x28b52ffd2081750300a206181c606b75a872d90af9823f3ebf0718ab902391e0c7632328785940afc0a9000736da482ca42acb064472c7f2de13a90e6cb4ee4da35886e90f1419a9027e905d3595ee12e6af9ff414c3e272375207f02cf0a7ad05724253b657bbc5f26a770803005668786c9a29ab2801'),
	('01a1f4f0-3b6a-33b2-913a-1201fd47a2f0', 0, '\x28b52ffd20817d0300a246181d606b75a872b94bbee00f4a968bba2d1867b3a1c56323585af0805e8101a909bad31b8984d465b97050ee60de3b2215dde9754728b10cfb8f465ca406f8c1f5d452df29cd1f7bfaa566c565c64815c02fc09fa618c8076d59a698532c2be60c0103005668786c9a29ab2801'),
	('01a1f422-89b7-e358-19e6-9b912416df2b', 0, '\x28b52ffd209c8d0300e246181b504d75007ff6710b37c650d78ac840e513e905da800e66aa434d1fba80c952d055f81810e60fd4fd84ae7aa3b74bb30e492cbf9682cf4c8f381686aee0f47c6791a54ba3deb0a566ea2d7c60437730ff026fd121c9095161e8a05cf071501e02040041c88a862eb09f672a284a'),
	('01a1f55a-b849-a4d0-e59e-03e818da9c6d', 0, '\x28b52ffd208d7d030092c6171c704b75c846dd96b46c652ddcf44d5e1a88fcc3b2062c1fabd8f47304a980482ca42acb064472e6743f919ace18d57df67d5914cb10fde1888c54013764574ea1bf24bd5b835a2516975b237500cf026fdc3a90139cb26db5b7585eed1d020400570bf5428f4927990a8a12'),
	('01a1f310-3c54-a9f6-fa21-ad3b29155e8a', 0, '\x28b52ffd2093850300b206181c704b75c846dd96b46c652ddcf44d5e1a88fcc3b2062c1fabd8f47304a980482ca42acb064472e6743f919ace18d57d58dcf765512c43f48723325205dc905d3985fe92f46e0d6a95585c6e8dd4013c0bbc71eb404e70cab6d5de6279b5770804005b0d15438f8ae79ab28a12'),
	('01a1f44f-2ce0-dce9-4cdc-7db4f0744572', 0, '\x28b52ffd208a7503008286171c704b75c846dd96b44c7fc36dfda2410622ffb0ac01cb1cfe8de9e708a94924125297e5c241b983e93e2215bd63fadbf79412cbf0fcd1888bd4003764574e9d3f05bd5b735a2116971b235500cf006fdc62201fb865db6a4fb1bcda330404005509e5420f29679ab28a12'),
	('01a1f5e2-ef70-9d35-6581-795bf5a5232a', 0, '\x28b52ffd204d69020046726f6d3a2050726f6d6f203c70726f6d6f406578616d706c652e6e65743e0d0a5375626a6563743a205468652073616d652074776963650d0a0d0a5468652073616d652062797465732e0d0a'),
	('01a1f5d0-3e1a-784f-6865-41f1ab8c7971', 0, '\x28b52ffd20877503007286171c506ddb80f46a24a11680b62c51584e40f28203335459ea4785e1d04d9880c92b602eba0684f207d3fd0466fafb8ba87bd328741f7488e3313005db0fbb6a0add29e9cd0e6a95d8d3e506e6e0390bdc698b919cd016e5c56ea1bbd81d0204005333d5428f08e7980a8a12'),
	('01a1f53a-39a3-f128-9801-2b5191c8677d', 0, '\x28b52ffd20846d03006246171c506ddb80d492bdd402d096275e1510b984136186aaadc1a3c270e8269880c933602eba87847208d3da15988295fada779c85ae438f3c5e0373b0cdad2796d05b69def8412d35ebe9b20393e0be027f9862242fb0455971337415372204005107c5420774b34dad4509'),
	('01a1f63c-72ec-776e-5cd3-8ca69bd11f37', 0, '\x28b52ffd208d7d030092c6171c506ddb80f4fa48a805a02d4b14961390bce0c00c555b834785e1d04d9880c933602eba87847208d37d05a6e08991624fdd9b66a1fba0471eaf8139d87ed85553e84e496f7650abc49e2e3b3009cf59e04e5b8ce485b6282f760cddc50e110400570bf5428f4927990a8a12'),
	('01a1f1af-26ad-6402-4a5f-801f8a76eb13', 0, '\x28b52ffd208a7d030082c6171c604d75a872d90a7bf4a3d8250cdb57c614c8d6a65400cf61007a0506a9804934a42ecb878472c879ef8a54813a73d459f7c763b10cd1234c6ca40ef841f6d412ba539abf56e8a586c5e576a412e059e0aaad2379a12ddbab1d6379b5430404005509e5420f29679ab28a12'),
	('01a1f416-ccb7-5714-504e-e5147fbcb833', 0, '\x28b52ffd2081750300e2c6181d606b75a846cd88902f48c3f2d59a5b827d361b1ab52b206dc1873e80018912ded51a898444bcab174d85837207d37d4422ded5faee38094d50fdd1888b4481d4d09d31537f4af3de47356b5cd4b48c44027807f8c38d817cc08b6edba7d0d4f61902020093153a925594'),
	('01a1f32d-f9dc-bdf4-cd50-7765a8842edc', 0, '\x28b52ffd20968d0300c246181c604d75433743b71bde8b36de81b8fefc03d3b6166888b7e001bd0203a980492ca42acb06c4f903753f91da11aac8e92fd40bcf308ae5261de2888c540177d3ae9e4a876779bb955a2d2d2ebb46eaa0790b7c3d8624273c651d7370b1cc1c3c0404005d3925430faba7990a8a12'),
	('01a1f3d6-04bf-8375-b4f1-8e69af680ccd', 0, '\x28b52ffd208d7d030092c6171c606bdb50d6859bc8b7cb5a9ea8831234db6e673685b55cbc2cb0951c9880c853c054740d88e40dea7e0293df30c4af95cf300add97fe703c0c4cc1f663574ea573b2bc9b935a2decd16d0dccc13b0bdc710b414e708ab6d578a1bb1a1f020400570bf5428f4927990a8a12'),
	('01a1f40e-d533-2ee8-a658-0ff54a948b7c', 0, '\x28b52ffd2081750300a206181c606b75a872d90af9b286e5f7006315722412fc78d50ae0785940afc0a9000535da482ca42ecb06447207f3de13a90a6ab4ee8ea35886e90f1419a9027e905d3595ee92e6af9ff454c3e272375207f02cf0a72d0672425bb657bbc5f26a770803005668786c9a29ab2801');
INSERT INTO public.body_chunk_20261120 VALUES
	('01a1f971-49ba-ed42-d1b6-06fa27c08cdf', 0, '\x28b52ffd2081750300a206181c604d7543cb652bc447ff16f6606c5f1953205b0b5400cf61007a0506a980474eda492ca42ecb0684f2c779ef89d4474e5a7786512c43748823325205fc20bb6a0add29e9af1bf4546271b91ba903781678d3d6919cd096edd56eb1bcda1d0203005668786c9a29ab2801'),
	('01a1f8c0-0781-a9e9-15a5-e6b7424a3eba', 0, '\x28b52ffd20907d0300a2c6171b604d75a38cbd2bec51bf8d7720ae3fffc0b4ad051ae22d7840afc0a98049534855960d88f30782f089d4c8db79520bed3bc32896633ac4d13052050c63bb722afd9de5b057826a69cd72375207f12df0e518929ce0946dd66fb1ccfa1d020400593705430f6a67990a8a12'),
	('01a1f677-dbe8-74d2-8ec7-0465cb9f140a', 0, '\x28b52ffd2090850300a206181c506d75c346fd96fad830cbd75b06452ee14458b0e5698a666a879a3ea9ca24125297e5c201ddc1741f911a39430fa856efbbe32496613aa41117a9016ec8ae9c4a7fa879b727b56a585c6e8c54013c03fc718b917ce0966dab3dc5f26acf100400593705430f6a67990a8a12');
INSERT INTO public.delivery_20261119 VALUES
	('01a1f23a-c421-7000-a70a-645ba5715a3d', 0, '', '', 'held', '2026-11-19 05:15:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f22d-0881-7000-8bca-cb8a92f44788', 0, 'alice@example.org', 'alice@example.org', 'held', '2026-11-19 05:00:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f22d-0881-7000-8bca-cb8a92f44788', 1, 'bob@example.org', 'bob@example.org', 'held', '2026-11-19 05:00:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f23c-98e1-7000-8087-1840253d28d4', 0, 'bob@example.org', 'bob@example.org', 'held', '2026-11-19 05:17:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f231-9c61-7000-ad8f-19e119080be5', 0, 'carol.smith@example.org', 'carol.smith@example.org', 'held', '2026-11-19 05:05:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f232-86c1-7000-a3ea-8c70aeb528da', 0, 'sales@example.org', 'sales@example.org', 'held', '2026-11-19 05:06:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f234-5b81-7000-98c7-e0973faeca4e', 0, 'erin@example.org', 'erin@example.org', 'held', '2026-11-19 05:08:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f23d-8341-7000-8b34-ab71b08fb8de', 0, 'erin@example.org', 'erin@example.org', 'held', '2026-11-19 05:18:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f235-45e1-7000-b70b-762313660e7b', 0, 'a@münchen.example', 'a@münchen.example', 'held', '2026-11-19 05:09:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f237-1aa1-7000-a7c3-7705cc2412f2', 0, 'a@münchen.example', 'a@münchen.example', 'held', '2026-11-19 05:11:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f238-0501-7000-aeeb-73af582f0a94', 0, 'chef@münchen.example', 'chef@münchen.example', 'held', '2026-11-19 05:12:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f236-3041-7000-986d-e4d3b414d804', 0, 'a@xn--mnchen-3ya.example', 'a@xn--mnchen-3ya.example', 'held', '2026-11-19 05:10:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f237-1aa1-7000-a7c3-7705cc2412f2', 1, 'a@xn--mnchen-3ya.example', 'a@xn--mnchen-3ya.example', 'held', '2026-11-19 05:11:00.001+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', 0, 'alice@example.org', 'alice@example.org', 'released', '2026-11-19 08:01:04+00', '', 1, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f22e-dd41-7000-bf53-cd32f03624cf', 0, 'alice@example.org', 'alice@example.org', 'deleted', '2026-11-19 08:05:04+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f22f-c7a1-7000-b49c-c999df6f485f', 0, 'alice@example.org', 'Alice@Example.ORG', 'requested', '2026-11-19 08:10:04+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f233-7121-7000-b892-381e9f0fcce6', 0, 'sales@example.org', 'sales@example.org', 'released', '2026-11-19 08:30:04+00', '', 1, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f238-ef61-7000-b55b-dcd148915a00', 0, 'chef@münchen.example', 'chef@münchen.example', 'released', '2026-11-19 08:55:04+00', '', 1, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f239-d9c1-7000-8f27-32e640b5119d', 0, 'frank@example.org', 'frank@example.org', 'held', '2026-11-19 09:10:00+00', 'RCPT TO: 550 5.1.1 no such mailbox', 1, NULL, NULL, NULL),
	('01a1f23b-ae81-7000-a4e9-66b19c0cea08', 0, 'bob@example.org', 'bob@example.org', 'held', '2026-11-19 09:30:00+00', 'It has a virus.', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f230-b201-7000-9fd7-0d8e7e3963cc', 0, 'alice@example.org', 'alice@example.org', 'held', '2026-11-19 09:32:00+00', '', 0, NULL, NULL, '2026-11-19 07:00:05+00'),
	('01a1f342-7021-7000-b511-65a2e3f60121', 0, 'a@xn--mnchen-3ya.example', 'a@xn--mnchen-3ya.example', 'held', '2026-11-19 10:03:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f345-2f41-7000-8d54-922ef5b17210', 0, 'mallory@elsewhere.example', 'mallory@elsewhere.example', 'held', '2026-11-19 10:06:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f346-19a1-7000-9654-34db739b1677', 0, 'bob@example.org', 'bob@example.org', 'held', '2026-11-19 10:07:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f343-5a81-7000-98fc-c18435b76f61', 0, 'alice@example.org', 'alice+shop@example.org', 'held', '2026-11-19 10:04:00.001+00', '', 0, NULL, NULL, '2026-11-20 05:30:05+00'),
	('01a1f340-9b61-7000-9fc3-0f76bdeb8c11', 0, 'erin@example.org', 'erin@example.org', 'held', '2026-11-19 10:01:00.001+00', '', 0, NULL, NULL, '2026-11-20 07:00:05+00'),
	('01a1f341-85c1-7000-b0db-2784fda75049', 0, 'a@münchen.example', 'a@münchen.example', 'held', '2026-11-19 10:02:00.001+00', '', 0, NULL, NULL, '2026-11-20 07:00:05+00'),
	('01a1f344-44e1-7000-9965-c28e4a205cbc', 0, 'sales@example.org', 'sales@example.org', 'requested', '2026-11-20 10:00:04+00', '', 0, NULL, NULL, '2026-11-20 07:00:05+00'),
	('01a1f33f-b101-7000-93a2-dd3996f64634', 0, 'alice@example.org', 'alice@example.org', 'releasing', '2026-11-20 11:58:00+00', 'final dot: 450 4.3.2 try again later', 1, '2026-11-20 11:59:00+00', NULL, '2026-11-20 05:30:05+00');
INSERT INTO public.delivery_20261120 VALUES
	('01a1f84a-95c1-7000-8305-2dc3699f42f2', 0, 'dave@example.org', 'dave@example.org', 'held', '2026-11-20 09:30:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f8c1-9a81-7000-bcd7-fbcfeda38418', 0, 'alice@example.org', 'alice@example.org', 'held', '2026-11-20 11:40:00.001+00', '', 0, NULL, NULL, NULL),
	('01a1f8c2-84e1-7000-a201-b71e21110c5d', 0, 'carol.smith@example.org', 'carol.smith@example.org', 'held', '2026-11-20 11:41:00.001+00', '', 0, NULL, NULL, '2026-11-20 11:45:10+00');
INSERT INTO public.digest VALUES
	('01a1f29a-f908-7000-ab7b-17094a68ae17', 'alice@example.org', 'alice@example.org', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f22d-0881-7000-8bca-cb8a92f44788,01a1f22d-f2e1-7000-89c4-a79c4fb17ae5,01a1f22e-dd41-7000-bf53-cd32f03624cf,01a1f22f-c7a1-7000-b49c-c999df6f485f,01a1f230-b201-7000-9fd7-0d8e7e3963cc}', '{0,0,0,0,0}'),
	('01a1f29a-f908-7000-82fc-91e36f21f391', 'bob@example.org', 'bob@example.org', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f22d-0881-7000-8bca-cb8a92f44788,01a1f23b-ae81-7000-a4e9-66b19c0cea08,01a1f23c-98e1-7000-8087-1840253d28d4}', '{1,0,0}'),
	('01a1f29a-f908-7000-8594-fbaa6d019955', 'carol@example.org', 'carol@example.org', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f231-9c61-7000-ad8f-19e119080be5,01a1f232-86c1-7000-a3ea-8c70aeb528da,01a1f233-7121-7000-b892-381e9f0fcce6}', '{0,0,0}'),
	('01a1f29a-f908-7000-a38e-4ef69f915bae', 'dave@example.org', 'dave@example.org', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f232-86c1-7000-a3ea-8c70aeb528da,01a1f233-7121-7000-b892-381e9f0fcce6}', '{0,0}'),
	('01a1f29a-f908-7000-adaa-3cafc8d5882a', 'erin@example.org', 'erin@example.org', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f234-5b81-7000-98c7-e0973faeca4e,01a1f23d-8341-7000-8b34-ab71b08fb8de}', '{0,0}'),
	('01a1f29a-f908-7000-9da9-d09cc4485eba', 'a@münchen.example', 'a@münchen.example', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f235-45e1-7000-b70b-762313660e7b,01a1f237-1aa1-7000-a7c3-7705cc2412f2,01a1f238-0501-7000-aeeb-73af582f0a94,01a1f238-ef61-7000-b55b-dcd148915a00}', '{0,0,0,0}'),
	('01a1f29a-f908-7000-b562-860e06b5fedc', 'a@xn--mnchen-3ya.example', 'a@xn--mnchen-3ya.example', '2026-11-19 07:00:05+00', '2026-11-19 07:00:05+00', '{01a1f236-3041-7000-986d-e4d3b414d804,01a1f237-1aa1-7000-a7c3-7705cc2412f2}', '{0,1}'),
	('01a1f76e-ef48-7000-8fe8-bb663c531f1b', 'alice@example.org', 'alice@example.org', '2026-11-20 05:30:05+00', '2026-11-20 05:30:05+00', '{01a1f33f-b101-7000-93a2-dd3996f64634,01a1f343-5a81-7000-98fc-c18435b76f61}', '{0,0}'),
	('01a1f76e-ef48-7000-b144-7d3711819a0d', 'frank@example.org', 'frank@example.org', '2026-11-20 07:00:05+00', NULL, '{}', '{}'),
	('01a1f7c1-5508-7000-93ef-cb7c096b9349', 'carol@example.org', 'carol@example.org', '2026-11-20 07:00:05+00', '2026-11-20 07:00:05+00', '{01a1f344-44e1-7000-9965-c28e4a205cbc}', '{0}'),
	('01a1f7c1-5508-7000-91d0-91a527eca73f', 'dave@example.org', 'dave@example.org', '2026-11-20 07:00:05+00', '2026-11-20 07:00:05+00', '{01a1f344-44e1-7000-9965-c28e4a205cbc}', '{0}'),
	('01a1f7c1-5508-7000-be3c-87f1ba723289', 'erin@example.org', 'erin@example.org', '2026-11-20 07:00:05+00', '2026-11-20 07:00:05+00', '{01a1f340-9b61-7000-9fc3-0f76bdeb8c11}', '{0}'),
	('01a1f7c1-5508-7000-8133-fd71d28f7539', 'a@münchen.example', 'a@münchen.example', '2026-11-20 07:00:05+00', '2026-11-20 07:00:05+00', '{01a1f341-85c1-7000-b0db-2784fda75049}', '{0}'),
	('01a1f8c6-5570-7000-af05-e22abd05b200', 'carol@example.org', 'carol@example.org', '2026-11-20 11:45:10+00', '2026-11-20 11:45:10+00', '{01a1f8c2-84e1-7000-a201-b71e21110c5d}', '{0}'),
	('01a1f8d3-26b0-7000-96cc-e40cbdf7183d', 'dave@example.org', 'dave@example.org', '2026-11-20 11:59:10+00', NULL, '{}', '{}');
INSERT INTO public.event_20261119 VALUES
	('01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', 0, 1, '2026-11-19 08:01:04+00', 'releasing', 'recipient', 'link', '192.0.2.7', ''),
	('01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', 0, 2, '2026-11-19 08:01:04+00', 'released', 'recipient', 'link', '192.0.2.7', '250 2.0.0 queued as 4Bx7'),
	('01a1f22e-dd41-7000-bf53-cd32f03624cf', 0, 3, '2026-11-19 08:05:04+00', 'deleted', 'recipient', 'link', '192.0.2.7', ''),
	('01a1f22f-c7a1-7000-b49c-c999df6f485f', 0, 4, '2026-11-19 08:10:04+00', 'requested', 'recipient', 'link', '192.0.2.7', ''),
	('01a1f233-7121-7000-b892-381e9f0fcce6', 0, 5, '2026-11-19 08:30:04+00', 'releasing', 'recipient:carol@example.org', 'link', '192.0.2.7', ''),
	('01a1f233-7121-7000-b892-381e9f0fcce6', 0, 6, '2026-11-19 08:30:04+00', 'released', 'recipient:carol@example.org', 'link', '192.0.2.7', '250 2.0.0 queued as 4Bx7'),
	('01a1f238-ef61-7000-b55b-dcd148915a00', 0, 7, '2026-11-19 08:55:04+00', 'releasing', 'recipient:a@münchen.example', 'link', '192.0.2.7', ''),
	('01a1f238-ef61-7000-b55b-dcd148915a00', 0, 8, '2026-11-19 08:55:04+00', 'released', 'recipient:a@münchen.example', 'link', '192.0.2.7', '250 2.0.0 queued as 4Bx7'),
	('01a1f23b-ae81-7000-a4e9-66b19c0cea08', 0, 9, '2026-11-19 09:05:04+00', 'requested', 'recipient', 'link', '192.0.2.7', ''),
	('01a1f239-d9c1-7000-8f27-32e640b5119d', 0, 10, '2026-11-19 09:10:00+00', 'assigned', 'operator:admin', 'cli', '', 'frank@example.org'),
	('01a1f239-d9c1-7000-8f27-32e640b5119d', 0, 11, '2026-11-19 09:10:00+00', 'releasing', 'operator:admin', 'cli', '', ''),
	('01a1f239-d9c1-7000-8f27-32e640b5119d', 0, 12, '2026-11-19 09:10:00+00', 'failed', 'operator:admin', 'cli', '', 'RCPT TO: 550 5.1.1 no such mailbox'),
	('01a1f23b-ae81-7000-a4e9-66b19c0cea08', 0, 13, '2026-11-19 09:30:00+00', 'refused', 'operator:admin', 'cli', '', 'It has a virus.'),
	('01a1f230-b201-7000-9fd7-0d8e7e3963cc', 0, 14, '2026-11-19 09:31:00+00', 'deleted', 'operator:admin', 'cli', '', ''),
	('01a1f230-b201-7000-9fd7-0d8e7e3963cc', 0, 15, '2026-11-19 09:32:00+00', 'restored', 'operator:admin', 'cli', '', ''),
	('01a1f344-44e1-7000-9965-c28e4a205cbc', 0, 16, '2026-11-20 10:00:04+00', 'requested', 'recipient:carol@example.org', 'link', '192.0.2.7', ''),
	('01a1f33f-b101-7000-93a2-dd3996f64634', 0, 17, '2026-11-20 11:58:00+00', 'releasing', 'recipient', 'portal', '192.0.2.11', ''),
	('01a1f33f-b101-7000-93a2-dd3996f64634', 0, 18, '2026-11-20 11:58:00+00', 'deferred', 'recipient', 'portal', '192.0.2.11', 'final dot: 450 4.3.2 try again later');
INSERT INTO public.message_20261119 VALUES
	('01a1f22d-0881-7000-8bca-cb8a92f44788', '01a1f47e-2225-1019-56ef-b209cd6490cb', 'spam', 'promo@example.net', 'Offer shared', 'Promo <promo@example.net>', '''=r0149f40bf1ba7c1e'' ''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''shared''', '4Xshared', 'shared@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xe59412609abeec64cc5914b5e894d89152d46cb5ca25101956efb209cd6490cb', 135, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', '01a1f60e-43f8-fb50-9002-ed75b8698cae', 'spam', 'promo@example.net', 'Offer released', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''released''', '4Xreleased', 'released@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x21e7bed6d0be468dba89b04b49f1a8c0f579d21633f8fb509002ed75b8698cae', 141, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f22e-dd41-7000-bf53-cd32f03624cf', '01a1f585-7c99-174b-fca7-fbdd646b3b50', 'spam', 'promo@example.net', 'Öffer deleted', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''deleted'' ''example'' ''net'' ''offer'' ''promo''', '4Xdeleted', 'deleted@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xadc5a0ba130519e71aa82828a0a8580f2bda8fb4a499174bfca7fbdd646b3b50', 139, true, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f22f-c7a1-7000-b49c-c999df6f485f', '01a1f3f1-6f9d-57fa-9e7f-56d5a0e891e6', 'dangerous', 'promo@example.net', 'Offer virus', 'Promo <promo@example.net>', '''=dangerous'' ''=r7bf0f7b81adae8b4'' ''=s037'' ''example'' ''net'' ''offer'' ''promo'' ''virus''', '4Xvirus', 'virus@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x47b89b0b2f1bddf566009a12573351d9352c1a4c1b9d57fa9e7f56d5a0e891e6', 132, false, '\x28b52ffd205cc502003285131a704bdb081f4cf7cdae05076b1b82a2327ceda407da38a1fe0f21ccfcc5f270240d86a281255128e884bb1e10856896cbb02730e7be54a64e4d1bf91ef3018806f17bc70cee2c9bb6a24416be1b020020bee435a1'),
	('01a1f230-b201-7000-9fd7-0d8e7e3963cc', '01a1f178-9078-3222-420f-acd550e1930e', 'suspicious', '', 'Offer encrypted', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=suspicious'' ''encrypted'' ''example'' ''net'' ''offer'' ''promo''', '4Xencrypted', 'encrypted@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xf36b0545ec9d95b5793091c263c23e28c9589b2718783222420facd550e1930e', 144, false, '\x28b52ffd205cb5020032c512197049dcbc8f7cef8e281a1d9c0126201eaca53f7138a1fe0f21cc7c456271c05d11886056f6400faa2d63d0d684d2de41cabd80f2f451acd7f7986f2012c4ef1512b8a754ac99b6147c370200151543f29a7b'),
	('01a1f231-9c61-7000-ad8f-19e119080be5', '01a1f63d-8d23-03cf-413f-4311dc86da84', 'spam', 'promo@example.net', 'Offer smith', 'Promo <promo@example.net>', '''=ra043b3946a59c091'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''smith''', '4Xsmith', 'smith@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xe029020e2dd50387b3f9807857480cce981274f24d2303cf413f4311dc86da84', 132, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f232-86c1-7000-a3ea-8c70aeb528da', '01a1f540-906f-d7c0-b717-045c063e3642', 'spam', 'promo@example.net', 'Offer sales', 'Promo <promo@example.net>', '''=r810f226224dd6561'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''sales''', '4Xsales', 'sales@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x08a61c3a1e4a396c28ce6c6839cb0ab45a88c813806fd7c0b717045c063e3642', 132, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f233-7121-7000-b892-381e9f0fcce6', '01a1f3fb-995a-c44f-c8a7-25edc8bc9f57', 'spam', 'promo@example.net', 'Offer sales-released', 'Promo <promo@example.net>', '''=r810f226224dd6561'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''released'' ''sales''', '4Xsales-released', 'sales-released@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xc65614c24e5544f76480a98d45b289682497a40a8d5ac44fc8a725edc8bc9f57', 159, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f234-5b81-7000-98c7-e0973faeca4e', '01a1f1ff-d411-f53f-357f-ffd812b308f9', 'spam', 'promo@example.net', 'Offer erin', 'Promo <promo@example.net>', '''=rc0853c87ec248a66'' ''=s037'' ''=spam'' ''erin'' ''example'' ''net'' ''offer'' ''promo''', '4Xerin', 'erin@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x3999b61592135f1befaad4e50982334c41e267ded011f53f357fffd812b308f9', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f235-45e1-7000-b70b-762313660e7b', '01a1f121-4820-6147-5653-fec129c5a5a5', 'spam', 'promo@example.net', 'Offer unicode', 'Promo <promo@example.net>', '''=ra39feff992417084'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''unicode''', '4Xunicode', 'unicode@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xbc97a347864fe5ec682cfa2ff2a9171d433bcb02582061475653fec129c5a5a5', 138, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f236-3041-7000-986d-e4d3b414d804', '01a1f132-f0ce-221c-28ea-6b466fa505c8', 'spam', 'promo@example.net', 'Offer alabel', 'Promo <promo@example.net>', '''=r6dc8d2bc66c714da'' ''=s037'' ''=spam'' ''alabel'' ''example'' ''net'' ''offer'' ''promo''', '4Xalabel', 'alabel@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x585709373d963afed66bed8f1f24eff3c664b8cb60ce221c28ea6b466fa505c8', 135, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f237-1aa1-7000-a7c3-7705cc2412f2', '01a1f34f-027e-8dd4-b62c-111719f3e2c5', 'spam', 'promo@example.net', 'Offer both', 'Promo <promo@example.net>', '''=r6dc8d2bc66c714da'' ''=ra39feff992417084'' ''=s037'' ''=spam'' ''both'' ''example'' ''net'' ''offer'' ''promo''', '4Xboth', 'both@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x30dee0d17843a5dfe4e4663e9dae610078acd478927e8dd4b62c111719f3e2c5', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f238-0501-7000-aeeb-73af582f0a94', '01a1f4f0-3b6a-33b2-913a-1201fd47a2f0', 'spam', 'promo@example.net', 'Offer chef', 'Promo <promo@example.net>', '''=rb9029cf9d7a9e35b'' ''=s037'' ''=spam'' ''chef'' ''example'' ''net'' ''offer'' ''promo''', '4Xchef', 'chef@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x088e96264985a378b027d69683f83c6aa40d2cf43b6a33b2913a1201fd47a2f0', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f238-ef61-7000-b55b-dcd148915a00', '01a1f422-89b7-e358-19e6-9b912416df2b', 'spam', 'promo@example.net', 'Offer chef-released', 'Promo <promo@example.net>', '''=rb9029cf9d7a9e35b'' ''=s037'' ''=spam'' ''chef'' ''example'' ''net'' ''offer'' ''promo'' ''released''', '4Xchef-released', 'chef-released@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x488dabec68a8462c16e553ca13cfea7a7a0e228555b7e35819e69b912416df2b', 156, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f23a-c421-7000-a70a-645ba5715a3d', '01a1f310-3c54-a9f6-fa21-ad3b29155e8a', 'suspicious', 'promo@example.net', 'Offer unassigned', 'Promo <promo@example.net>', '''=re4a6a0577479b2b4'' ''=s037'' ''=suspicious'' ''example'' ''net'' ''offer'' ''promo'' ''unassigned''', '4Xunassigned', 'unassigned@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{recipients}', '\x1d3381fd4e80279765a8162f88261947eb5106772c54a9f6fa21ad3b29155e8a', 147, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f23b-ae81-7000-a4e9-66b19c0cea08', '01a1f44f-2ce0-dce9-4cdc-7db4f0744572', 'dangerous', 'promo@example.net', 'Offer refused', 'Promo <promo@example.net>', '''=dangerous'' ''=r0149f40bf1ba7c1e'' ''=s037'' ''example'' ''net'' ''offer'' ''promo'' ''refused''', '4Xrefused', 'refused@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x95b330970285aa9de6faaae49536a6487f49b6a838e0dce94cdc7db4f0744572', 138, false, '\x28b52ffd205cc502003285131a704bdb081f4cf7cdae05076b1b82a2327ceda407da38a1fe0f21ccfcc5f270240d86a281255128e884bb1e10856896cbb02730e7be54a64e4d1bf91ef3018806f17bc70cee2c9bb6a24416be1b020020bee435a1'),
	('01a1f23c-98e1-7000-8087-1840253d28d4', '01a1f5e2-ef70-9d35-6581-795bf5a5232a', 'spam', 'promo@example.net', 'Offer copy1', 'Promo <promo@example.net>', '''=r0149f40bf1ba7c1e'' ''=s037'' ''=spam'' ''copy1'' ''example'' ''net'' ''offer'' ''promo''', '4Xcopy1', NULL, 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x6df65465a99d45c58e29ce8e27fad49fcf5f994ebf709d356581795bf5a5232a', 77, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f23d-8341-7000-8b34-ab71b08fb8de', '01a1f5e2-ef70-9d35-6581-795bf5a5232a', 'spam', 'promo@example.net', 'Offer copy2', 'Promo <promo@example.net>', '''=rc0853c87ec248a66'' ''=s037'' ''=spam'' ''copy2'' ''example'' ''net'' ''offer'' ''promo''', '4Xcopy2', NULL, 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x6df65465a99d45c58e29ce8e27fad49fcf5f994ebf709d356581795bf5a5232a', 77, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f33f-b101-7000-93a2-dd3996f64634', '01a1f5d0-3e1a-784f-6865-41f1ab8c7971', 'spam', 'promo@example.net', 'Offer queued', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''queued''', '4Xqueued', 'queued@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x6c95d47ef91c9b6828622282efe883eb3b9c9eef961a784f686541f1ab8c7971', 135, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f239-d9c1-7000-8f27-32e640b5119d', '01a1f55a-b849-a4d0-e59e-03e818da9c6d', 'suspicious', 'promo@example.net', 'Offer assigned', 'Promo <promo@example.net>', '''=r6592a2d518d6e99a'' ''=re4a6a0577479b2b4'' ''=s037'' ''=suspicious'' ''assigned'' ''example'' ''net'' ''offer'' ''promo''', '4Xassigned', 'assigned@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{recipients}', '\x6e6c92386515e1e306946e8fcaca964504559d9e4449a4d0e59e03e818da9c6d', 141, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f340-9b61-7000-9fc3-0f76bdeb8c11', '01a1f53a-39a3-f128-9801-2b5191c8677d', 'spam', 'promo@example.net', 'Offer erin2', 'Promo <promo@example.net>', '''=rc0853c87ec248a66'' ''=s037'' ''=spam'' ''erin2'' ''example'' ''net'' ''offer'' ''promo''', '4Xerin2', 'erin2@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x3b7cb4a991859cf518d9faaaaa3127262763ad30b9a3f12898012b5191c8677d', 132, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f342-7021-7000-b511-65a2e3f60121', '01a1f1af-26ad-6402-4a5f-801f8a76eb13', 'spam', 'promo@example.net', 'Offer alabel2', 'Promo <promo@example.net>', '''=r6dc8d2bc66c714da'' ''=s037'' ''=spam'' ''alabel2'' ''example'' ''net'' ''offer'' ''promo''', '4Xalabel2', 'alabel2@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x2cbb8f44c4e2f11782d79331ec9958911a3149a76ead64024a5f801f8a76eb13', 138, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f344-44e1-7000-9965-c28e4a205cbc', '01a1f32d-f9dc-bdf4-cd50-7765a8842edc', 'dangerous', 'promo@example.net', 'Offer sales-virus', 'Promo <promo@example.net>', '''=dangerous'' ''=r810f226224dd6561'' ''=s037'' ''example'' ''net'' ''offer'' ''promo'' ''sales'' ''virus''', '4Xsales-virus', 'sales-virus@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x4620dd9d14fe60a9ecd75a0a80a6357ced34aebdb5dcbdf4cd507765a8842edc', 150, false, '\x28b52ffd205cc502003285131a704bdb081f4cf7cdae05076b1b82a2327ceda407da38a1fe0f21ccfcc5f270240d86a281255128e884bb1e10856896cbb02730e7be54a64e4d1bf91ef3018806f17bc70cee2c9bb6a24416be1b020020bee435a1'),
	('01a1f346-19a1-7000-9654-34db739b1677', '01a1f40e-d533-2ee8-a658-0ff54a948b7c', 'spam', 'promo@example.net', 'Offer bob2', 'Promo <promo@example.net>', '''=r0149f40bf1ba7c1e'' ''=s037'' ''=spam'' ''bob2'' ''example'' ''net'' ''offer'' ''promo''', '4Xbob2', 'bob2@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x5c5bde924a04574ac0855e8f44ac280d74a0e72c75332ee8a6580ff54a948b7c', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f341-85c1-7000-b0db-2784fda75049', '01a1f63c-72ec-776e-5cd3-8ca69bd11f37', 'spam', 'promo@example.net', 'Offer unicode2', 'Promo <promo@example.net>', '''=ra39feff992417084'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''unicode2''', '4Xunicode2', 'unicode2@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x8733e5592a110ac9c340f4b538eeabf9f9bd566046ec776e5cd38ca69bd11f37', 141, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f343-5a81-7000-98fc-c18435b76f61', '01a1f416-ccb7-5714-504e-e5147fbcb833', 'spam', 'promo@example.net', 'Offer shop', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''shop''', '4Xshop', 'shop@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x1fd7bf96b16972cb9f2c2a51a437f74cddee971dccb75714504ee5147fbcb833', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f345-2f41-7000-8d54-922ef5b17210', '01a1f3d6-04bf-8375-b4f1-8e69af680ccd', 'spam', 'promo@example.net', 'Offer stranger', 'Promo <promo@example.net>', '''=r21c8b2f0c5014051'' ''=s037'' ''=spam'' ''example'' ''net'' ''offer'' ''promo'' ''stranger''', '4Xstranger', 'stranger@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xb9d9a37fd4d64e620d918430a55e5637c972b11e7cbf8375b4f18e69af680ccd', 141, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d');
INSERT INTO public.message_20261120 VALUES
	('01a1f84a-95c1-7000-8305-2dc3699f42f2', '01a1f971-49ba-ed42-d1b6-06fa27c08cdf', 'spam', 'promo@example.net', 'Offer dave', 'Promo <promo@example.net>', '''=rc5a81ed971aeaf68'' ''=s037'' ''=spam'' ''dave'' ''example'' ''net'' ''offer'' ''promo''', '4Xdave', 'dave@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\xbb841ada672954c743bb7f175752f0c36c58631175baed42d1b606fa27c08cdf', 129, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f8c1-9a81-7000-bcd7-fbcfeda38418', '01a1f8c0-0781-a9e9-15a5-e6b7424a3eba', 'spam', 'promo@example.net', 'Offer alice-new', 'Promo <promo@example.net>', '''=r7bf0f7b81adae8b4'' ''=s037'' ''=spam'' ''alice'' ''example'' ''net'' ''new'' ''offer'' ''promo''', '4Xalice-new', 'alice-new@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x591b058c1bf5a05a16c3f45e507ac9a3db9b358feb81a9e915a5e6b7424a3eba', 144, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d'),
	('01a1f8c2-84e1-7000-a201-b71e21110c5d', '01a1f677-dbe8-74d2-8ec7-0465cb9f140a', 'spam', 'promo@example.net', 'Offer smith-new', 'Promo <promo@example.net>', '''=ra043b3946a59c091'' ''=s037'' ''=spam'' ''example'' ''net'' ''new'' ''offer'' ''promo'' ''smith''', '4Xsmith-new', 'smith-new@example.net', 'reject', 17.5, '198.51.100.9', NULL, NULL, '{}', '\x5541d652090f37806bc40583e35d575bc9a086fffbe874d28ec70465cb9f140a', 144, false, '\x28b52ffd2035a901005b5b2242415945535f5350414d222c352e312c5b2239392e393925225d5d2c5b22525f5350465f4641494c222c312e302c5b5d5d5d');
INSERT INTO public.opening OVERRIDING SYSTEM VALUE VALUES
	(1, 'alice@example.org', '2026-11-19 07:00:05+00', '01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', 0, '2026-11-19 08:00:00+00'),
	(2, 'alice@example.org', '2026-11-19 07:00:05+00', '01a1f22d-f2e1-7000-89c4-a79c4fb17ae5', 0, '2026-11-19 08:01:00+00'),
	(3, 'alice@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:01:04+00'),
	(4, 'alice@example.org', '2026-11-19 07:00:05+00', '01a1f22e-dd41-7000-bf53-cd32f03624cf', 0, '2026-11-19 08:05:00+00'),
	(5, 'alice@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:05:04+00'),
	(6, 'alice@example.org', '2026-11-19 07:00:05+00', '01a1f22f-c7a1-7000-b49c-c999df6f485f', 0, '2026-11-19 08:10:00+00'),
	(7, 'alice@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:10:04+00'),
	(8, 'erin@example.org', '2026-11-19 07:00:05+00', '01a1f29a-f908-7000-adaa-3cafc8d5882a', 0, '2026-11-19 08:15:00+00'),
	(9, 'erin@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:15:04+00'),
	(10, 'carol@example.org', '2026-11-19 07:00:05+00', '01a1f233-7121-7000-b892-381e9f0fcce6', 0, '2026-11-19 08:30:00+00'),
	(11, 'carol@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:30:04+00'),
	(12, 'a@münchen.example', '2026-11-19 07:00:05+00', '01a1f238-ef61-7000-b55b-dcd148915a00', 0, '2026-11-19 08:55:00+00'),
	(13, 'a@münchen.example', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 08:55:04+00'),
	(14, 'bob@example.org', '2026-11-19 07:00:05+00', '01a1f23b-ae81-7000-a4e9-66b19c0cea08', 0, '2026-11-19 09:05:00+00'),
	(15, 'bob@example.org', '2026-11-19 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-19 09:05:04+00'),
	(16, 'carol@example.org', '2026-11-20 07:00:05+00', '01a1f344-44e1-7000-9965-c28e4a205cbc', 0, '2026-11-20 10:00:00+00'),
	(17, 'carol@example.org', '2026-11-20 07:00:05+00', '00000000-0000-0000-0000-000000000000', 0, '2026-11-20 10:00:04+00'),
	(18, 'alice@example.org', '2026-11-20 05:30:05+00', '01a1f33f-b101-7000-93a2-dd3996f64634', 0, '2026-11-20 11:00:00+00');
INSERT INTO public.outgoing VALUES
	('01a1f8d2-8a70-7000-944b-83fe6a3c2a22', 'bob@example.org', '\x46726f6d3a20224d61696c2071756172616e74696e6522203c71756172616e74696e65406578616d706c652e6f72673e0d0a546f3a20626f62406578616d706c652e6f72670d0a5375626a6563743a205369676e20696e20746f20796f7572206d61696c2071756172616e74696e653a20343034203032370d0a446174653a204672692c203230204e6f7620323032362031313a35383a3330202b303030300d0a4d6573736167652d49443a203c30316131663864322d386137312d373030302d616235382d343037303230636534663161406578616d706c652e6f72673e0d0a4175746f2d5375626d69747465643a206175746f2d67656e6572617465640d0a582d4175746f2d526573706f6e73652d53757070726573733a20416c6c0d0a582d51756172616e74696e652d4d61726b3a206d61696c2030316131663864322d386137312d373030302d616235382d3430373032306365346631612e382d70314b56663231797279316533695f7637316d684e7a35464a69325364502d33386268656f444255410d0a4d494d452d56657273696f6e3a20312e300d0a436f6e74656e742d547970653a206d756c7469706172742f616c7465726e61746976653b0d0a20626f756e646172793d223d5f3031613166386432386137313730303061623538343037303230636534663161220d0a0d0a2d2d3d5f30316131663864323861373137303030616235383430373032306365346631610d0a436f6e74656e742d547970653a20746578742f706c61696e3b20636861727365743d227574662d38220d0a436f6e74656e742d4c616e67756167653a20656e0d0a436f6e74656e742d5472616e736665722d456e636f64696e673a2071756f7465642d7072696e7461626c650d0a0d0a4d61696c2071756172616e74696e650d0a536f6d65626f64792c2070726f6261626c7920796f752c2061736b656420746f207369676e20696e20746f20796f7572206d61696c2071756172616e74696e652e0d0a0d0a4f70656e2074686973206c696e6b20746f207369676e20696e3a0d0a687474703a2f2f3132372e302e302e313a383038302f71756172616e74696e652f7369676e2d696e2f5749516176684363745661566b6b4c6f78685a7831483651775f594d736c6c592f0d0a0d0a4f7220656e746572207468697320636f646520776865726520796f752061736b656420666f722069743a0d0a343034203032370d0a0d0a426f746820776f726b206f6e63652c20666f72203135206d696e757465732e20496620697420776173206e6f7420796f752c20646f206e6f7468696e672e0d0a687474703a2f2f3132372e302e302e313a383038302f71756172616e74696e652f0d0a0d0a0d0a2d2d3d5f30316131663864323861373137303030616235383430373032306365346631610d0a436f6e74656e742d547970653a20746578742f68746d6c3b20636861727365743d227574662d38220d0a436f6e74656e742d4c616e67756167653a20656e0d0a436f6e74656e742d5472616e736665722d456e636f64696e673a2071756f7465642d7072696e7461626c650d0a4d494d452d56657273696f6e3a20312e300d0a0d0a3c21646f63747970652068746d6c3e0d0a3c68746d6c206c616e673d334422656e22206469723d3344226c7472223e0d0a3c686561643e0d0a3c6d65746120636861727365743d3344227574662d38223e0d0a3c6d657461206e616d653d33442276696577706f72742220636f6e74656e743d33442277696474683d33446465766963652d77696474682c20696e697469616c2d7363616c653d334431223e0d0a3c6d657461206e616d653d334422636f6c6f722d736368656d652220636f6e74656e743d3344226c69676874206461726b223e0d0a3c7469746c653e5369676e20696e20746f20796f7572206d61696c2071756172616e74696e653c2f7469746c653e0d0a3c2f686561643e0d0a3c626f6479207374796c653d3344226d617267696e3a30206175746f3b6d61782d77696474683a333272656d3b70616464696e673a3172656d3b666f6e743a313670782f312e352073616e3d0d0a732d7365726966223e0d0a3c70207374796c653d3344226d617267696e3a30203020313670783b666f6e742d7765696768743a626f6c64223e4d61696c2071756172616e74696e653c2f703e3c703e536f6d65626f643d0d0a792c2070726f6261626c7920796f752c2061736b656420746f207369676e20696e20746f20796f7572206d61696c2071756172616e74696e652e3c2f703e0d0a3c703e3c6120687265663d334422687474703a2f2f3132372e302e302e313a383038302f71756172616e74696e652f7369676e2d696e2f5749516176684363745661566b6b4c6f78685a783d0d0a31483651775f594d736c6c592f22207374796c653d334422646973706c61793a696e6c696e652d626c6f636b3b70616464696e673a3132707820323070783b626f726465722d72616469753d0d0a733a3870783b6261636b67726f756e643a233062353764303b636f6c6f723a236666663b666f6e742d7765696768743a626f6c643b746578742d6465636f726174696f6e3a6e6f6e65223e3d0d0a5369676e20696e3c2f613e3c2f703e0d0a3c703e4f7220656e746572207468697320636f646520776865726520796f752061736b656420666f722069743a3c2f703e0d0a3c70207374796c653d334422666f6e742d73697a653a323870783b666f6e742d7765696768743a626f6c643b6c65747465722d73706163696e673a327078223e343034203032373c2f703e0d0a3c703e426f746820776f726b206f6e63652c20666f72203135206d696e757465732e20496620697420776173206e6f7420796f752c20646f206e6f7468696e672e3c2f703e0d0a3c703e3c736d616c6c3e687474703a2f2f3132372e302e302e313a383038302f71756172616e74696e652f3c2f736d616c6c3e3c2f703e0d0a3c2f626f64793e0d0a3c2f68746d6c3e0d0a0d0a2d2d3d5f30316131663864323861373137303030616235383430373032306365346631612d2d0d0a', 1, '2026-11-20 11:58:30+00', '2026-11-20 11:58:45.001+00', NULL);
INSERT INTO public.recipient VALUES
	('sales@example.org', 'sales@example.org', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('chef@münchen.example', 'chef@münchen.example', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('frank@example.org', 'frank@example.org', NULL, NULL, '2026-11-19 05:14:00.001+00', '2026-11-21 07:00:00+00', NULL, NULL, '01a1f76e-ef48-7000-b144-7d3711819a0d', NULL, NULL, 2, 'RCPT TO: 550 5.1.1 no such mailbox', '2026-11-20 07:00:05+00'),
	('erin@example.org', 'erin@example.org', NULL, '2026-11-19 08:15:04+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('a@münchen.example', 'a@münchen.example', NULL, NULL, NULL, NULL, '{"schedule": "weekdays", "at": ["08:00"], "timezone": "Europe/Berlin", "language": "fr"}', NULL, NULL, NULL, NULL, 0, '', NULL),
	('a@xn--mnchen-3ya.example', 'a@xn--mnchen-3ya.example', '2026-11-19 08:50:04+00', NULL, '2026-11-19 10:03:00.001+00', NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('bob@example.org', 'bob@example.org', '2026-11-19 08:20:00+00', NULL, '2026-11-19 10:07:00.001+00', NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('carol.smith@example.org', 'carol.smith@example.org', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, '', NULL),
	('alice@example.org', 'alice@example.org', NULL, NULL, '2026-11-20 11:40:00.001+00', '2026-11-20 17:00:00+00', '{"schedule": "daily", "at": ["06:30", "18:00"], "timezone": "Europe/Berlin", "language": "de"}', NULL, NULL, NULL, NULL, 0, '', NULL),
	('carol@example.org', 'carol@example.org', NULL, NULL, NULL, NULL, NULL, '2026-11-20 11:45:00+00', NULL, NULL, NULL, 0, '', NULL),
	('dave@example.org', 'dave@example.org', NULL, NULL, '2026-11-20 09:30:00.001+00', '2026-11-21 07:00:00.003+00', NULL, NULL, '01a1f8d3-26b0-7000-96cc-e40cbdf7183d', '59a04095-7466-4325-833b-bdcb1f4d2192', '2026-11-20 12:00:40+00', 0, '', NULL);
INSERT INTO public.seen VALUES
	('\x53987b712e5ed348f16ffdd83aec5c896ff8c243f6937eeb8c8af9f679435bee', '01a1f22d-0881-7000-8bca-cb8a92f44788'),
	('\x08d9f5766f48674ca249300d939f6ce4bc21e0f343fdcdea57eb927016d65726', '01a1f22d-f2e1-7000-89c4-a79c4fb17ae5'),
	('\xea2e96246c0edf88640cf30fbae90c095ce4cac6f09d5305707e42f5243b9017', '01a1f22e-dd41-7000-bf53-cd32f03624cf'),
	('\x9ea0ada7f455cc1585260b2243a1fe00f506c3402633f496448ff1e88e553e15', '01a1f22f-c7a1-7000-b49c-c999df6f485f'),
	('\xd81b0cfc206f8c5ec4c8f77a83887099ae50811b671752fca65bbd3b35cd49d2', '01a1f230-b201-7000-9fd7-0d8e7e3963cc'),
	('\x5998e8f0d409ad649208cb4fc9c8811cd1aecc16377c8f24e97682480b0ba94e', '01a1f231-9c61-7000-ad8f-19e119080be5'),
	('\xcec1b3e2df44d9a007cd0e8b36ff6fc6a0d1e18e63e85f9e2dbc49d7a20838a5', '01a1f232-86c1-7000-a3ea-8c70aeb528da'),
	('\xae23ec165608b609f4391bc104a0a78af9bbe966f3066ec65883870772bdb027', '01a1f233-7121-7000-b892-381e9f0fcce6'),
	('\xeaa030fa1e9914cf25b63146c38df1134691284c1df8e33e2d8844f6c9856c9f', '01a1f234-5b81-7000-98c7-e0973faeca4e'),
	('\xa8dab87193e7668d1c13ef4cf40f597267a822dda92dd72454db12a5877cfc96', '01a1f235-45e1-7000-b70b-762313660e7b'),
	('\xff7376858ba1b020b075c2155dca440791aff1f31a743110c85b7b6931aa6e58', '01a1f236-3041-7000-986d-e4d3b414d804'),
	('\x807d6c88f5ff76fc5b0400e8e86e42f9fcbf975d85c0931e7d9fa4befc58a103', '01a1f237-1aa1-7000-a7c3-7705cc2412f2'),
	('\xa0ddccc5d94163be28f0af31048cfe081c114173ffa5d9826ab5dbfa3c43e0f3', '01a1f238-0501-7000-aeeb-73af582f0a94'),
	('\xba26c75f28e1bd503b3bcdbf97a3e355be80c2b3a99145d03cdf998daf9e1c78', '01a1f238-ef61-7000-b55b-dcd148915a00'),
	('\x91477a50221dfc5e2bc447a6387264b9e9bcf4d34008695e081aed5cf4d30b3b', '01a1f239-d9c1-7000-8f27-32e640b5119d'),
	('\xeca1551f3ac03dbf39f02e3978cd87060e305b1bd9f37411bb3cb238e9e453e6', '01a1f23a-c421-7000-a70a-645ba5715a3d'),
	('\x268621da155fca2c7885fae7104f4b624793fd64cc9c3f4ff6026ac9c5f403d9', '01a1f23b-ae81-7000-a4e9-66b19c0cea08'),
	('\xa24d33b37e2a7e287d22e9a48508f577627735c2e5b77e5a417373f84ee0090b', '01a1f23c-98e1-7000-8087-1840253d28d4'),
	('\xe5cecc5243e1ccdcc27c13986f254d9debd776638ec396cffbd97cc0d664f7fd', '01a1f23d-8341-7000-8b34-ab71b08fb8de'),
	('\x60b9c99bddb9a2e2903f30a5081956f518eae309c23feaa332650399953a43e0', '01a1f33f-b101-7000-93a2-dd3996f64634'),
	('\xc856d22b15ddb6499a0f3be7b47b7d278558e8245bfe3a94c40d4025d75eb3ee', '01a1f340-9b61-7000-9fc3-0f76bdeb8c11'),
	('\x644bede3e0014c69f0e3d6b0688fd563d182ea3c3a1b29d4d83ebb9e1e1fb3c0', '01a1f341-85c1-7000-b0db-2784fda75049'),
	('\x2805fd1d3e51a568fc056c564a704c7cf69980d44e0e4f5ba47501449491ada0', '01a1f342-7021-7000-b511-65a2e3f60121'),
	('\x51df018586c240b3b6eec23a9755390c5a3e74d65dd707593101dba65c027b82', '01a1f343-5a81-7000-98fc-c18435b76f61'),
	('\x2607e97a2b429fbffd664ee965c4a40cd5a90f74f4e2d0fc6fb8ed0e89572d0a', '01a1f344-44e1-7000-9965-c28e4a205cbc'),
	('\xa6ac9b1c301806e9a54c5e80521b6be3fdea0851848cb20f2df94fda42569086', '01a1f345-2f41-7000-8d54-922ef5b17210'),
	('\xaffcd6bba09a0830cb4a990f57d6d7bc63ed1e027e51a655aceeae6e5f6342e9', '01a1f346-19a1-7000-9654-34db739b1677'),
	('\xc66a3a5a83629ce2e7ad325f98c4d1eb5690772e2f925a171a7d52a71503baae', '01a1f84a-95c1-7000-8305-2dc3699f42f2'),
	('\x7d36b6337b80bfa944175b2dc6f186283fdf234208b9922706423f49d3c85273', '01a1f8c1-9a81-7000-bcd7-fbcfeda38418'),
	('\xc81ade94f98eb8d1f9c35ba0ef98f6ce34a3065e8f1db283ed6fdc9df833e6d8', '01a1f8c2-84e1-7000-a201-b71e21110c5d');
INSERT INTO public.session VALUES
	('\xebdc85637073d5b64fc8ee41ab922e960e47c07f9ffdcb354ddb3ebe88e5b765', 'alice@example.org', '2026-11-20 08:50:05.001+00', '2026-11-20 12:00:00+00'),
	('\x32f12f5ad42b4b2e3e4eeeb29b80248305240789cc5f5dfe5fc60abb27d2d23d', 'carol@example.org', '2026-11-20 09:25:05.001+00', '2026-11-20 12:00:00+00'),
	('\xc5241bfa54344d5e720ba6ea0d0cae8a6aa71ce54d998f650e6cea159cbac614', 'a@münchen.example', '2026-11-20 09:10:05.001+00', '2026-11-20 12:00:00+00'),
	('\x06ee216828ef004522fd77dff0a3e02dd4447258c8af200d2113065459ec2b5e', 'a@xn--mnchen-3ya.example', '2026-11-20 09:20:05.001+00', '2026-11-20 12:00:00+00');
INSERT INTO public.setting VALUES
	('schema_version', '4'),
	('links.key', 'd286614af73521cb'),
	('people.last_good', '# aliases and a role mailbox
carol.smith@example.org carol@example.org
sales@example.org carol@example.org, dave@example.org
chef@münchen.example a@münchen.example
'),
	('people.version', 'bc68b0c68845f613'),
	('digest.clock', '2026-11-20T03:17:05+00:00 2026-11-20T03:17:05+00:00'),
	('tally.digests.deferred', '0'),
	('tally.digests.refused', '2'),
	('tally.digests.runs', '4'),
	('tally.digests.seconds', '0.2882606979983393'),
	('tally.digests.sent', '13'),
	('digests.run_seconds', '0.013'),
	('digests.sent_at', '2026-11-20T11:45:10+00:00'),
	('alarm our own mail is withheld by Rspamd', '2026-11-20T11:50:00+00:00 K67kgihH'),
	('store.heartbeat', '2026-11-20T11:59:00+00:00'),
	('store.ping', '2026-11-27 10:53:54.869206+00');
INSERT INTO public.sign_in VALUES
	('\x8042bfda213963385e31cf9009b1f2053d392385eff27be8b77d09630ec293f7', '\x95c2202949d43d74dd86415e313cb9cc82f397371aaa6c423c88840e86695907', '\x8b2264f8bdf36668042ce18b0ed4923b6435d617d53233b734a38946fd6dc684', 'alice@example.org', '192.0.2.11', '2026-11-20 08:50:00+00', '2026-11-20 09:05:00+00', '2026-11-20 08:50:05.001+00', 0),
	('\x7986879473461f83fa5bc91dfa3ba92b9375e88272e47996da13800a89384a0c', '\x5225160b0b7fe9d320cd674e1557d7002d0d5dc386b0c3d4f294f79319b815a6', '\x6534ea17339ffa8c8886fcff3640f4e5858b2ca17ce75ae82c41b9f78ad73d59', 'a@münchen.example', '192.0.2.12', '2026-11-20 09:10:00+00', '2026-11-20 09:25:00+00', '2026-11-20 09:10:05.001+00', 0),
	('\x82b4983487cc85788a34fa5a20f24a3875ef814f4e88d65e41e66fac67544954', '\x35a21ce2606b6ade293a7370ac4fab69c31ccf2a4a9cb968e2e6820af016a4c7', '\x2d2d24e9c18e6059b593b9b295f2f15a594f61664de7cb56edc0a4d90c382682', 'a@xn--mnchen-3ya.example', '192.0.2.13', '2026-11-20 09:20:00+00', '2026-11-20 09:35:00+00', '2026-11-20 09:20:05.001+00', 0),
	('\x5a4034c5f932ab29287452fa88f7d15b1a54baed4e091d54a356a58334842682', '\x85c6339bccf3209f5b766cc12da1077d2fb0877791448371d1f40f93c7d092bc', '\x1184815b671cb74594b425ea2e213dc7952fcdcba5f30b5baaf6eaae8902b801', 'carol@example.org', '192.0.2.14', '2026-11-20 09:25:00+00', '2026-11-20 09:40:00+00', '2026-11-20 09:25:05.001+00', 0),
	('\x7a87af6265c4d1f105757b2e1912f384257836b095d86cbbac1d30b7b30999f3', '\xfd9b4ee544c3c2c2b528141d0dd8ee4566ede37ad18ba040925501d7291ad0f1', '\xf2a14fc6b59b8c319b7ccd9895864c22ddde3a5172ba61a824ca671a3998289c', 'a@münchen.example', '192.0.2.15', '2026-11-20 11:55:00+00', '2026-11-20 12:10:00+00', NULL, 0),
	('\x163c452cc2073584aa7a05aa832f5692b7c2f73e6fc2a56766d5a342f7e7c9f3', '\xc899263a1d856006af2640bad40a7b2096cbd80b8f92dbb3fe8e4b6a602e2b5a', '\x81d65fc3bede7a344a770af40bc49e8bdc12e756ea2bdc668e60b22de12c8139', 'alice@example.org', '192.0.2.16', '2026-11-20 11:57:00+00', '2026-11-20 12:12:00+00', NULL, 0),
	('\x40d1ee00658ec4d8cd9e8ea951edf69f6b7ddb98db6938d06d2c9d540f171fe2', '\xc70b4f1369cc0c5e4f749090992568730579617c57d18df692191ad9816b2d0a', '\xc099def9252cf46708c0653e766f317250b948e065cdef1375b94bc4c643fa60', 'bob@example.org', '192.0.2.17', '2026-11-20 11:58:30+00', '2026-11-20 12:13:30+00', NULL, 0);
INSERT INTO public.told_20261119 VALUES
	('01a1f231-9c61-7000-ad8f-19e119080be5', 0, 'carol@example.org'),
	('01a1f232-86c1-7000-a3ea-8c70aeb528da', 0, 'carol@example.org'),
	('01a1f233-7121-7000-b892-381e9f0fcce6', 0, 'carol@example.org'),
	('01a1f232-86c1-7000-a3ea-8c70aeb528da', 0, 'dave@example.org'),
	('01a1f233-7121-7000-b892-381e9f0fcce6', 0, 'dave@example.org'),
	('01a1f238-0501-7000-aeeb-73af582f0a94', 0, 'a@münchen.example'),
	('01a1f238-ef61-7000-b55b-dcd148915a00', 0, 'a@münchen.example'),
	('01a1f344-44e1-7000-9965-c28e4a205cbc', 0, 'carol@example.org'),
	('01a1f344-44e1-7000-9965-c28e4a205cbc', 0, 'dave@example.org');
INSERT INTO public.told_20261120 VALUES
	('01a1f8c2-84e1-7000-a201-b71e21110c5d', 0, 'carol@example.org');
SELECT pg_catalog.setval('public.event_seq', 18, true);
SELECT pg_catalog.setval('public.opening_id_seq', 18, true);
ALTER TABLE ONLY public.body_chunk
    ADD CONSTRAINT body_chunk_pkey PRIMARY KEY (body_id, n);
ALTER TABLE ONLY public.body_chunk_20261119
    ADD CONSTRAINT body_chunk_20261119_pkey PRIMARY KEY (body_id, n);
ALTER TABLE ONLY public.body_chunk_20261120
    ADD CONSTRAINT body_chunk_20261120_pkey PRIMARY KEY (body_id, n);
ALTER TABLE ONLY public.body_chunk_20261121
    ADD CONSTRAINT body_chunk_20261121_pkey PRIMARY KEY (body_id, n);
ALTER TABLE ONLY public.delivery
    ADD CONSTRAINT delivery_pkey PRIMARY KEY (message_id, number);
ALTER TABLE ONLY public.delivery_20261119
    ADD CONSTRAINT delivery_20261119_pkey PRIMARY KEY (message_id, number);
ALTER TABLE ONLY public.delivery_20261120
    ADD CONSTRAINT delivery_20261120_pkey PRIMARY KEY (message_id, number);
ALTER TABLE ONLY public.delivery_20261121
    ADD CONSTRAINT delivery_20261121_pkey PRIMARY KEY (message_id, number);
ALTER TABLE ONLY public.digest
    ADD CONSTRAINT digest_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (message_id, number, seq);
ALTER TABLE ONLY public.event_20261119
    ADD CONSTRAINT event_20261119_pkey PRIMARY KEY (message_id, number, seq);
ALTER TABLE ONLY public.event_20261120
    ADD CONSTRAINT event_20261120_pkey PRIMARY KEY (message_id, number, seq);
ALTER TABLE ONLY public.event_20261121
    ADD CONSTRAINT event_20261121_pkey PRIMARY KEY (message_id, number, seq);
ALTER TABLE ONLY public.message
    ADD CONSTRAINT message_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.message_20261119
    ADD CONSTRAINT message_20261119_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.message_20261120
    ADD CONSTRAINT message_20261120_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.message_20261121
    ADD CONSTRAINT message_20261121_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.opening
    ADD CONSTRAINT opening_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.outgoing
    ADD CONSTRAINT outgoing_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.recipient
    ADD CONSTRAINT recipient_pkey PRIMARY KEY (recipient);
ALTER TABLE ONLY public.seen
    ADD CONSTRAINT seen_pkey PRIMARY KEY (sameness);
ALTER TABLE ONLY public.session
    ADD CONSTRAINT session_pkey PRIMARY KEY (session_sha256);
ALTER TABLE ONLY public.setting
    ADD CONSTRAINT setting_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.sign_in
    ADD CONSTRAINT sign_in_pkey PRIMARY KEY (token_sha256);
ALTER TABLE ONLY public.told
    ADD CONSTRAINT told_pkey PRIMARY KEY (message_id, number, reader);
ALTER TABLE ONLY public.told_20261119
    ADD CONSTRAINT told_20261119_pkey PRIMARY KEY (message_id, number, reader);
ALTER TABLE ONLY public.told_20261120
    ADD CONSTRAINT told_20261120_pkey PRIMARY KEY (message_id, number, reader);
ALTER TABLE ONLY public.told_20261121
    ADD CONSTRAINT told_20261121_pkey PRIMARY KEY (message_id, number, reader);
CREATE INDEX delivery_message_id_idx ON ONLY public.delivery USING btree (message_id) WHERE (state = 'requested'::text);
CREATE INDEX delivery_20261119_message_id_idx ON public.delivery_20261119 USING btree (message_id) WHERE (state = 'requested'::text);
CREATE INDEX delivery_message_id_number_idx ON ONLY public.delivery USING btree (message_id, number) WHERE (state <> 'held'::text);
CREATE INDEX delivery_20261119_message_id_number_idx ON public.delivery_20261119 USING btree (message_id, number) WHERE (state <> 'held'::text);
CREATE INDEX delivery_next_try_at_idx ON ONLY public.delivery USING btree (next_try_at) WHERE (state = 'releasing'::text);
CREATE INDEX delivery_20261119_next_try_at_idx ON public.delivery_20261119 USING btree (next_try_at) WHERE (state = 'releasing'::text);
CREATE INDEX delivery_recipient_message_id_idx ON ONLY public.delivery USING btree (recipient, message_id) WHERE (state = 'released'::text);
CREATE INDEX delivery_20261119_recipient_message_id_idx ON public.delivery_20261119 USING btree (recipient, message_id) WHERE (state = 'released'::text);
CREATE INDEX delivery_recipient_message_id_number_idx ON ONLY public.delivery USING btree (recipient, message_id, number);
CREATE INDEX delivery_20261119_recipient_message_id_number_idx ON public.delivery_20261119 USING btree (recipient, message_id, number);
CREATE INDEX delivery_recipient_message_id_number_idx1 ON ONLY public.delivery USING btree (recipient, message_id, number) WHERE ((state = 'held'::text) AND (announced_at IS NULL));
CREATE INDEX delivery_20261119_recipient_message_id_number_idx1 ON public.delivery_20261119 USING btree (recipient, message_id, number) WHERE ((state = 'held'::text) AND (announced_at IS NULL));
CREATE INDEX delivery_20261120_message_id_idx ON public.delivery_20261120 USING btree (message_id) WHERE (state = 'requested'::text);
CREATE INDEX delivery_20261120_message_id_number_idx ON public.delivery_20261120 USING btree (message_id, number) WHERE (state <> 'held'::text);
CREATE INDEX delivery_20261120_next_try_at_idx ON public.delivery_20261120 USING btree (next_try_at) WHERE (state = 'releasing'::text);
CREATE INDEX delivery_20261120_recipient_message_id_idx ON public.delivery_20261120 USING btree (recipient, message_id) WHERE (state = 'released'::text);
CREATE INDEX delivery_20261120_recipient_message_id_number_idx ON public.delivery_20261120 USING btree (recipient, message_id, number);
CREATE INDEX delivery_20261120_recipient_message_id_number_idx1 ON public.delivery_20261120 USING btree (recipient, message_id, number) WHERE ((state = 'held'::text) AND (announced_at IS NULL));
CREATE INDEX delivery_20261121_message_id_idx ON public.delivery_20261121 USING btree (message_id) WHERE (state = 'requested'::text);
CREATE INDEX delivery_20261121_message_id_number_idx ON public.delivery_20261121 USING btree (message_id, number) WHERE (state <> 'held'::text);
CREATE INDEX delivery_20261121_next_try_at_idx ON public.delivery_20261121 USING btree (next_try_at) WHERE (state = 'releasing'::text);
CREATE INDEX delivery_20261121_recipient_message_id_idx ON public.delivery_20261121 USING btree (recipient, message_id) WHERE (state = 'released'::text);
CREATE INDEX delivery_20261121_recipient_message_id_number_idx ON public.delivery_20261121 USING btree (recipient, message_id, number);
CREATE INDEX delivery_20261121_recipient_message_id_number_idx1 ON public.delivery_20261121 USING btree (recipient, message_id, number) WHERE ((state = 'held'::text) AND (announced_at IS NULL));
CREATE INDEX digest_issued_at_idx ON public.digest USING btree (issued_at);
CREATE INDEX digest_recipient_issued_at_id_idx ON public.digest USING btree (recipient, issued_at, id) WHERE (sent_at IS NOT NULL);
CREATE INDEX message_left_idx ON ONLY public.message USING btree ("left"(queue_id, 100));
CREATE INDEX message_20261119_left_idx ON public.message_20261119 USING btree ("left"(queue_id, 100));
CREATE INDEX message_terms_idx ON ONLY public.message USING gin (terms) WITH (gin_pending_list_limit='1024');
CREATE INDEX message_20261119_terms_idx ON public.message_20261119 USING gin (terms) WITH (gin_pending_list_limit='1024');
CREATE INDEX message_20261120_left_idx ON public.message_20261120 USING btree ("left"(queue_id, 100));
CREATE INDEX message_20261120_terms_idx ON public.message_20261120 USING gin (terms) WITH (gin_pending_list_limit='1024');
CREATE INDEX message_20261121_left_idx ON public.message_20261121 USING btree ("left"(queue_id, 100));
CREATE INDEX message_20261121_terms_idx ON public.message_20261121 USING gin (terms) WITH (gin_pending_list_limit='1024');
CREATE INDEX opening_at_idx ON public.opening USING btree (at);
CREATE INDEX opening_recipient_issued_at_at_idx ON public.opening USING btree (recipient, issued_at, at);
CREATE INDEX outgoing_next_try_at_idx ON public.outgoing USING btree (next_try_at);
CREATE INDEX recipient_failed_at_idx ON public.recipient USING btree (failed_at) WHERE (failed_at IS NOT NULL);
CREATE INDEX recipient_news_since_idx ON public.recipient USING btree (news_since) WHERE ((news_since IS NOT NULL) AND (stopped_at IS NULL) AND (next_digest_at IS NULL));
CREATE INDEX recipient_next_digest_at_idx ON public.recipient USING btree (next_digest_at) WHERE ((news_since IS NOT NULL) AND (stopped_at IS NULL));
CREATE INDEX seen_message_id_idx ON public.seen USING btree (message_id);
CREATE INDEX session_used_at_idx ON public.session USING btree (used_at);
CREATE INDEX sign_in_browser_sha256_created_at_idx ON public.sign_in USING btree (browser_sha256, created_at);
CREATE INDEX sign_in_client_ip_created_at_idx ON public.sign_in USING btree (client_ip, created_at);
CREATE INDEX sign_in_created_at_idx ON public.sign_in USING btree (created_at);
CREATE INDEX sign_in_recipient_created_at_idx ON public.sign_in USING btree (recipient, created_at);
ALTER INDEX public.body_chunk_pkey ATTACH PARTITION public.body_chunk_20261119_pkey;
ALTER INDEX public.body_chunk_pkey ATTACH PARTITION public.body_chunk_20261120_pkey;
ALTER INDEX public.body_chunk_pkey ATTACH PARTITION public.body_chunk_20261121_pkey;
ALTER INDEX public.delivery_message_id_idx ATTACH PARTITION public.delivery_20261119_message_id_idx;
ALTER INDEX public.delivery_message_id_number_idx ATTACH PARTITION public.delivery_20261119_message_id_number_idx;
ALTER INDEX public.delivery_next_try_at_idx ATTACH PARTITION public.delivery_20261119_next_try_at_idx;
ALTER INDEX public.delivery_pkey ATTACH PARTITION public.delivery_20261119_pkey;
ALTER INDEX public.delivery_recipient_message_id_idx ATTACH PARTITION public.delivery_20261119_recipient_message_id_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx ATTACH PARTITION public.delivery_20261119_recipient_message_id_number_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx1 ATTACH PARTITION public.delivery_20261119_recipient_message_id_number_idx1;
ALTER INDEX public.delivery_message_id_idx ATTACH PARTITION public.delivery_20261120_message_id_idx;
ALTER INDEX public.delivery_message_id_number_idx ATTACH PARTITION public.delivery_20261120_message_id_number_idx;
ALTER INDEX public.delivery_next_try_at_idx ATTACH PARTITION public.delivery_20261120_next_try_at_idx;
ALTER INDEX public.delivery_pkey ATTACH PARTITION public.delivery_20261120_pkey;
ALTER INDEX public.delivery_recipient_message_id_idx ATTACH PARTITION public.delivery_20261120_recipient_message_id_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx ATTACH PARTITION public.delivery_20261120_recipient_message_id_number_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx1 ATTACH PARTITION public.delivery_20261120_recipient_message_id_number_idx1;
ALTER INDEX public.delivery_message_id_idx ATTACH PARTITION public.delivery_20261121_message_id_idx;
ALTER INDEX public.delivery_message_id_number_idx ATTACH PARTITION public.delivery_20261121_message_id_number_idx;
ALTER INDEX public.delivery_next_try_at_idx ATTACH PARTITION public.delivery_20261121_next_try_at_idx;
ALTER INDEX public.delivery_pkey ATTACH PARTITION public.delivery_20261121_pkey;
ALTER INDEX public.delivery_recipient_message_id_idx ATTACH PARTITION public.delivery_20261121_recipient_message_id_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx ATTACH PARTITION public.delivery_20261121_recipient_message_id_number_idx;
ALTER INDEX public.delivery_recipient_message_id_number_idx1 ATTACH PARTITION public.delivery_20261121_recipient_message_id_number_idx1;
ALTER INDEX public.event_pkey ATTACH PARTITION public.event_20261119_pkey;
ALTER INDEX public.event_pkey ATTACH PARTITION public.event_20261120_pkey;
ALTER INDEX public.event_pkey ATTACH PARTITION public.event_20261121_pkey;
ALTER INDEX public.message_left_idx ATTACH PARTITION public.message_20261119_left_idx;
ALTER INDEX public.message_pkey ATTACH PARTITION public.message_20261119_pkey;
ALTER INDEX public.message_terms_idx ATTACH PARTITION public.message_20261119_terms_idx;
ALTER INDEX public.message_left_idx ATTACH PARTITION public.message_20261120_left_idx;
ALTER INDEX public.message_pkey ATTACH PARTITION public.message_20261120_pkey;
ALTER INDEX public.message_terms_idx ATTACH PARTITION public.message_20261120_terms_idx;
ALTER INDEX public.message_left_idx ATTACH PARTITION public.message_20261121_left_idx;
ALTER INDEX public.message_pkey ATTACH PARTITION public.message_20261121_pkey;
ALTER INDEX public.message_terms_idx ATTACH PARTITION public.message_20261121_terms_idx;
ALTER INDEX public.told_pkey ATTACH PARTITION public.told_20261119_pkey;
ALTER INDEX public.told_pkey ATTACH PARTITION public.told_20261120_pkey;
ALTER INDEX public.told_pkey ATTACH PARTITION public.told_20261121_pkey;
