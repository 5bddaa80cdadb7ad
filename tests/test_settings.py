"""Settings: defaults, where values come from, and a list of all problems with their sources."""

from __future__ import annotations

import os
from datetime import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from psycopg.conninfo import conninfo_to_dict

from portal.model.errors import SettingsError
from portal.model.schedule import Preferences
from portal.model.store_url import StoreUrl
from portal.policy.domains import Domains
from portal.settings import Settings, keys, load, load_from, masked


def load_toml(folder: Path, text: str, **environ: str) -> Settings:
    path = folder / "quarantine.toml"
    path.write_text(text, "utf-8")
    return load({"QUARANTINE_CONFIG": str(path), **environ})


def problems(folder: Path, text: str = "", **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load_toml(folder, text, **environ)
    head, *lines = str(error.value).splitlines()
    assert head == "The settings have problems:"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


# ---- defaults


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("public_url", "http://127.0.0.1:8080/quarantine"),
        ("local_domains", ()),
        ("store.url", "files:var/quarantine"),
        ("store.retention_days", 30),
        ("exporter.user", None),
        ("exporter.password", None),
        ("exporter.allowed_networks", (ip_network("127.0.0.0/8"), ip_network("::1/128"))),
        ("exporter.max_body_bytes", 80 * 1024 * 1024),
        ("exporter.only_symbols", ()),
        ("exporter.hold_actions", ("reject", "discard")),
        ("relay.url", "smtp://127.0.0.1:10025"),
        ("mail.url", "smtp://127.0.0.1:25"),
        ("mail.from_address", None),
        ("mail.admin_address", None),
        ("digest.at", (time(7, 0),)),
        ("digest.schedule", "daily"),
        ("domains", {}),
        ("digest.domains", {}),
        ("digest.timezone", "UTC"),
        ("digest.language", "en"),
        ("digest.max_rows", 50),
        ("links.keys", ()),
        ("links.keys_file", None),
        ("links.confirm", "auto"),
        ("links.autosubmit_after_minutes", 10),
        ("links.lifetime_days", 14),
    ],
)
def test_defaults(tmp_path: Path, key: str, default: object) -> None:
    value: Any = load_toml(tmp_path, "")
    for part in key.split("."):
        value = getattr(value, part)
    assert (value.get_secret_value() if hasattr(value, "get_secret_value") else value) == default
    assert key in keys()


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load_toml(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        settings.public_url = "http://other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.store.retention_days = 1  # type: ignore[misc]


# ---- where values come from


def test_a_variable_goes_before_the_file(tmp_path: Path) -> None:
    text = "public_url = 'https://file.example.org/q'\n[store]\nretention_days = 5\n[digest]\nat = '06:30'"
    environ = {"QUARANTINE_STORE__RETENTION_DAYS": "9", "QUARANTINE_PUBLIC_URL": "https://env.example.org/q/"}
    settings = load_toml(tmp_path, text, **environ)
    assert (settings.store.retention_days, settings.public_url) == (9, "https://env.example.org/q")
    assert settings.digest.at == (time(6, 30),)


def test_each_value_is_shown_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.toml"
    path.write_text("[store]\nretention_days = 5\n[digest]\nmax_rows = 3")
    _, used, sources = load_from({"QUARANTINE_CONFIG": str(path), "QUARANTINE_DIGEST__MAX_ROWS": "4"})
    assert used == path
    assert sources == {
        "store.retention_days": str(path),
        "digest.max_rows": "environment variable QUARANTINE_DIGEST__MAX_ROWS",
    }


def test_without_a_named_file_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quarantine.toml").write_text("[store]\nretention_days = 5")
    settings, path, _ = load_from({})
    assert settings.store.retention_days == 5
    assert path == Path("quarantine.toml")


def test_the_real_environment_is_read_when_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.toml").write_text("[store]\nretention_days = 6")
    for name in [name for name in os.environ if name.startswith("QUARANTINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUARANTINE_CONFIG", str(tmp_path / "own.toml"))
    monkeypatch.setenv("QUARANTINE_DIGEST__MAX_ROWS", "7")
    settings = load()
    assert (settings.store.retention_days, settings.digest.max_rows) == (6, 7)


def test_lists_are_written_with_commas_in_variables(tmp_path: Path) -> None:
    settings = load_toml(
        tmp_path,
        "",
        QUARANTINE_LOCAL_DOMAINS="Example.ORG, example.com ,, me@Example.net",
        QUARANTINE_MAIL__FROM_ADDRESS="q@example.org",
        QUARANTINE_EXPORTER__ALLOWED_NETWORKS="127.0.0.1, ::1",
        QUARANTINE_EXPORTER__HOLD_ACTIONS="reject,add header",
        QUARANTINE_EXPORTER__ONLY_SYMBOLS="A,B*",
        QUARANTINE_LINKS__KEYS=f"{'o' * 32},{'n' * 32}",
    )
    assert settings.local_domains == ("example.org", "example.com", "me@example.net")
    assert settings.exporter.allowed_networks == (ip_network("127.0.0.1"), ip_network("::1"))
    assert settings.exporter.hold_actions == ("reject", "add header")
    assert settings.exporter.only_symbols == ("A", "B*")
    assert [key.get_secret_value() for key in settings.links.keys] == ["o" * 32, "n" * 32]


def test_an_empty_list_in_a_variable_is_empty(tmp_path: Path) -> None:
    assert load_toml(tmp_path, "local_domains = ['example.org']", QUARANTINE_LOCAL_DOMAINS="").local_domains == ()


def test_lists_are_lists_in_the_file(tmp_path: Path) -> None:
    text = "[exporter]\nallowed_networks = ['10.0.0.0/8']\nuser = 'rspamd'\npassword = 'x'\nhold_actions = []"
    settings = load_toml(tmp_path, text)
    assert settings.exporter.allowed_networks == (ip_network("10.0.0.0/8"),)
    assert settings.exporter.hold_actions == ()


def test_actions_may_be_written_as_in_rspamds_configuration(tmp_path: Path) -> None:
    settings = load_toml(tmp_path, "[exporter]\nhold_actions = ['Reject', 'add_header', 'rewrite subject']")
    assert settings.exporter.hold_actions == ("reject", "add header", "rewrite subject")


def test_times_may_be_texts_or_times(tmp_path: Path) -> None:
    assert load_toml(tmp_path, "[digest]\nat = '23:59'").digest.at == (time(23, 59),)
    assert load_toml(tmp_path, "[digest]\nat = 05:15:00").digest.at == (time(5, 15),)
    text = "[digest]\nat = ['13:00', 07:30:00, '13:00']"
    assert load_toml(tmp_path, text).digest.at == (time(7, 30), time(13))
    assert load_toml(tmp_path, "", QUARANTINE_DIGEST__AT="18:00, 06:00").digest.at == (time(6), time(18))


# ---- secrets from files


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file(tmp_path: Path, end: str) -> None:
    secret = tmp_path / "password"
    secret.write_text("p@ss wörd" + end, "utf-8", newline="")
    text = f"[exporter]\nuser = 'rspamd'\npassword_file = '{secret}'"
    password = load_toml(tmp_path, text).exporter.password
    assert password
    assert password.get_secret_value() == "p@ss wörd"


@pytest.mark.parametrize("key", ["store.url", "relay.url", "mail.url"])
def test_urls_with_passwords_may_be_in_files(tmp_path: Path, key: str) -> None:
    url = "postgresql://u:p@db/q" if key == "store.url" else "smtps://u:p@relay:465"
    secret = tmp_path / "url"
    secret.write_text(url + "\n")
    variable = f"QUARANTINE_{key.upper().replace('.', '__')}_FILE"
    settings = load_toml(tmp_path, "", **{variable: str(secret)})
    section, name = key.split(".")
    assert getattr(getattr(settings, section), name).get_secret_value() == url


def test_a_secret_that_is_given_twice_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("files:x")
    found = problems(tmp_path, f"[store]\nurl = 'files:y'\nurl_file = '{tmp_path}/url'")
    assert found == [f"store.url_file: store.url is set as well: use one of them ({tmp_path}/quarantine.toml)"]


def test_a_secret_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xe4")
    path = f"({tmp_path}/quarantine.toml)"
    assert problems(tmp_path, f"[relay]\nurl_file = '{tmp_path}/none'") == [
        f"relay.url_file: {tmp_path}/none cannot be read: No such file or directory {path}"
    ]
    assert problems(tmp_path, f"[relay]\nurl_file = '{tmp_path}'") == [
        f"relay.url_file: {tmp_path} cannot be read: Is a directory {path}"
    ]
    assert problems(tmp_path, f"[relay]\nurl_file = '{tmp_path}/latin'") == [
        f"relay.url_file: {tmp_path}/latin is not UTF-8 {path}"
    ]
    for wrong in ("{}", "{a = 1}", "7", "''", "[]"):
        (found,) = problems(tmp_path, f"[relay]\nurl_file = {wrong}")
        assert found.startswith("relay.url_file: expected the path of a file")


def test_a_wrong_value_in_a_secret_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://topsecret@nowhere")
    (found,) = problems(tmp_path, f"[relay]\nurl_file = '{tmp_path}/url'")
    assert found.endswith(f"(file {tmp_path}/url)")
    assert "topsecret" not in found


# ---- problems


TOO_FAR = "exporter.allowed_networks includes other hosts, so exporter.user and exporter.password are needed"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("public_url = 'mail.example.org/quarantine'", "public_url: Enter a URL like https://"),
        ("oidc.x = {issuer = 'http://a.example', client_id = 'q'}", 'oidc."x".issuer: expected a URL like https://'),
        ("proxy.secret = 'short'", "proxy.secret: expected at least 32 printable ASCII characters"),
        ("proxy.sign_out_url = 'javascript:x'", "proxy.sign_out_url: expected a URL like https://"),
        ("oidc.x = {client_id = 'q'}", 'oidc."x".issuer: Field required'),
        ("oidc.X = {issuer = 'https://a.example', client_id = 'q'}", 'oidc: "X": the name of a provider has'),
        (
            "oidc.x = {issuer = 'https://a.example', client_id = 'q', address_claim = 'upn'}",
            'oidc."x": address_claim: email_verified says nothing about this claim',
        ),
        ("public_url = 'ftp://mail.example.org'", "public_url: Enter a URL like https://"),
        ("[staff.groups]\nit = 'root'", "staff.groups: \"it\": 'root' is not a role; the"),
        ("[staff.groups]\nit = 'domain-administrator'", 'staff.groups: "it": the role domain-administrator needs'),
        ("[staff.groups]\nit = ['auditor', 'administrator:a.example']", 'staff.groups: "it": the role administrator'),
        ("[staff.groups]\nit = 'auditor:a.example'", 'staff.groups."it": a.example is not in local_domains'),
        ("public_url = 'https://mail.example.org/q?x=1'", "public_url: Enter a URL like https://"),
        ("public_url = 'https://mail.example.org/q#x'", "public_url: Enter a URL like https://"),
        ("public_url = 'https://mail.example.org/a b'", "public_url: Enter a URL like https://"),
        ("public_url = 'https://käse.example.org/q'", "public_url: Enter a URL like https://"),
        ("public_url = 'https://mail.example.org:99999/q'", "public_url: The host name or the port is not valid"),
        ("public_url = 'https://mail..example.org/q'", "public_url: The host name or the port is not valid"),
        ("public_url = 'https://[1]/q'", "public_url: The host name or the port is not valid"),
        ("public_url = 'https://mail.example.org:port/q'", "public_url: Enter a URL like https://"),
        ("public_url = 'https://u:p@mail.example.org/q'", "public_url: Enter a URL like https://"),
        ("public_url = 7", "public_url: Input should be a valid string"),
        ("local_domains = ['@example.org']", "local_domains: '@example.org' is neither a domain like"),
        ("local_domains = ['*.example.org']", "local_domains: '*.example.org' is neither a domain like"),
        ("local_domains = ['me@']", "local_domains: 'me@' is neither a domain like"),
        ("local_domains = ['example org']", "local_domains: 'example org' is neither a domain like"),
        ("local_domains = [7]", "local_domains: Input should be a valid string"),
        ("local_domains = ['example.org']", "mail.from_address is required if local_domains is set"),
        ("store.url = 'sqlite:x'", "store.url: expected files:PATH, files:///abs/path or postgresql://…"),
        ("store.url = 'files:'", "store.url: expected files:PATH"),
        ("store.url = 'postgresql://'", "store.url: expected files:PATH"),
        ("store.url = 'var/quarantine'", "store.url: expected files:PATH"),
        ("store.retention_days = 0", "store.retention_days: Input should be greater than or equal to 1"),
        ("store.retention_days = 'a month'", "store.retention_days: Input should be a valid integer"),
        ("store = 'files:x'", "store: expected a table, written [store]"),
        ("store = []", "store: expected a table, written [store]"),
        ("exporter.user = 'rspamd'", "exporter.user and exporter.password go together: set both or neither"),
        ("exporter.password = 'x'", "exporter.user and exporter.password go together: set both or neither"),
        ("exporter = {user = 'rspamd', password = ''}", "exporter.password is empty"),
        ("exporter = {user = '', password = 'x'}", "exporter.user is empty or has a colon"),
        ("exporter = {user = 'a:b', password = 'x'}", "exporter.user is empty or has a colon"),
        ("exporter.allowed_networks = ['10.0.0.0/8']", TOO_FAR),
        ("exporter.allowed_networks = ['0.0.0.0/0']", TOO_FAR),
        ("exporter.allowed_networks = ['::/0']", TOO_FAR),
        ("exporter.allowed_networks = ['10.0.0.1/8']", "exporter.allowed_networks: '10.0.0.1/8' is not a network like"),
        ("exporter.allowed_networks = ['here']", "exporter.allowed_networks: 'here' is not a network like"),
        ("exporter.max_body_bytes = 1000", "exporter.max_body_bytes: Input should be greater than or equal to 65536"),
        ("ldap.uri = 'http://dc1'", "ldap.uri: expected ldaps://host:port or ldap://host:port"),
        ("ldap.uri = 'ldaps://dc1/dc=example'", "ldap.uri: expected nothing but the host and the port"),
        ("ldap.uri = 'ldaps://dc1'", "ldap.base is required if ldap.uri is set"),
        ("ldap = {bind_dn = 'cn=portal'}", "ldap.bind_dn and ldap.bind_password: set both, or neither"),
        ("ldap = {bind_dn = 'cn=portal', bind_password = ''}", "ldap.bind_dn and ldap.bind_password: set both"),
        ("ldap.filter = '(mail=*)'", "ldap.filter: expected a filter with {address} in it"),
        ("imap.tls = 'none'", "imap.tls: "),
        (
            "local_domains = ['a.example', 'b.example']\nmail.from_address = 'q@a.example'\n"
            "imap = {host = 'imap', user = 'local-part'}",
            "imap.user is local-part, but local_domains has several domains",
        ),
        ("relay.url = 'mail.example.org:25'", "relay.url: expected smtp://host:port, smtps://"),
        ("relay.url = 'http://mail.example.org'", "relay.url: expected smtp://host:port, smtps://"),
        ("relay.url = 'smtp://'", "relay.url: expected smtp://host:port, smtps://"),
        ("relay.url = 'smtp://mail host:25'", "relay.url: expected smtp://host:port, smtps://"),
        ("relay.url = 'smtp://host:0'", "relay.url: expected scheme://[user:password@]host[:port]"),
        ("relay.url = 'smtp://host:70000'", "relay.url: the host is invalid, or the port is not a number"),
        ("relay.url = 'smtp://host:smtp'", "relay.url: the host is invalid, or the port is not a number"),
        ("relay.url = 'smtp://[::1'", "relay.url: the host is invalid, or the port is not a number"),
        ("relay.url = 'smtp://host/path'", "relay.url: expected scheme://[user:password@]host[:port]"),
        ("relay.url = 'smtp://host?tls=1'", "relay.url: expected scheme://[user:password@]host[:port]"),
        ("relay.url = 'smtp://user@host'", "relay.url: give both a user and a password, or neither"),
        ("relay.url = 'smtp://user:@host'", "relay.url: give both a user and a password, or neither"),
        ("relay.url = 'smtp://:password@host'", "relay.url: give both a user and a password, or neither"),
        ("mail.url = 'imap://host'", "mail.url: expected smtp://host:port, smtps://"),
        ("mail.from_address = 'Quarantine <q@example.org>'", "mail.from_address: Enter one address like"),
        ("mail.from_address = 'quarantine'", "mail.from_address: Enter one address like"),
        ("mail.from_address = 'q@exämple.org'", "mail.from_address: Enter one address like"),
        ("mail.from_address = 'q:r@example.org'", "mail.from_address: Enter one address like"),
        ("mail.from_address = \"q@example.org\\r\"", "mail.from_address: Enter one address like"),
        ("mail.admin_address = 'a@example.org, b@example.org'", "mail.admin_address: Enter one address like"),
        ("digest.at = '25:00'", "digest.at: Input should be in a valid time format"),
        ("digest.at = 'seven'", "digest.at: Input should be in a valid time format"),
        ("digest.at = '07:00:30'", "digest.at: Enter times like 07:00, without seconds and"),
        ("digest.at = '07:00Z'", "digest.at: Enter times like 07:00, without seconds and"),
        ("digest.at = []", "digest.at: Enter one to 6 times of day"),
        ("digest.at = ['01:00', '02:00', '03:00', '04:00', '05:00', '06:00', '07:00']", "digest.at: Enter one to 6"),
        ("digest.schedule = 'hourly'", "digest.schedule: Input should be 'never', 'daily', 'weekdays', 'monday'"),
        ("digest.domains = 'example.net'", 'digest.domains: expected tables like [domains."example.net"]'),
        ("domains = 'example.net'", 'domains: expected tables like [domains."example.net"]'),
        ("digest.domains = []", "digest.domains: expected a table, written [digest.domains]"),
        ("domains = []", "domains: expected a table, written [domains]"),
        ("digest.domains.'a.example' = 1", 'digest.domains."a.example": expected a table, written [digest.domains."a'),
        ("domains.'a.example' = 1", 'domains."a.example": expected a table, written [domains."a'),
        ("digest.domains.'a.example'.at = '25:00'", 'digest.domains."a.example".at: Input should be in a valid time'),
        ("domains.'a.example'.at = '25:00'", 'domains."a.example".at: Input should be in a valid time'),
        ("digest.domains.'a.example'.timezone = 'Mars'", 'digest.domains."a.example".timezone: \'Mars\' is not a'),
        ("domains.'a.example'.timezone = 'Mars'", 'domains."a.example".timezone: \'Mars\' is not a time zone'),
        ("digest.domains.'a.example'.hour = 1", 'digest.domains."a.example".hour: there is no such setting'),
        ("domains.'a.example'.hour = 1", 'domains."a.example".hour: there is no such setting'),
        ("digest.domains.'a.example'.at = '07:00'", 'digest.domains."a.example": this domain is not in local'),
        ("domains.'a.example'.at = '07:00'", 'domains."a.example": this domain is not in local'),
        ("digest.timezone = 'Europe/Nowhere'", "digest.timezone: 'Europe/Nowhere' is not a time zone"),
        ("digest.timezone = '../etc/passwd'", "digest.timezone: '../etc/passwd' is not a time zone"),
        ("digest.timezone = ''", "digest.timezone: '' is not a time zone"),
        ("digest.timezone = 'Europe'", "digest.timezone: 'Europe' is not a time zone"),
        ("digest.language = 'xx'", "digest.language: Input should be 'en'"),
        ("digest.max_rows = 0", "digest.max_rows: Input should be greater than or equal to 1"),
        ("links.keys = ['short']", "links.keys: each signing key needs at least 32 bytes"),
        (f"links = {{keys = ['{'n' * 32}'], keys_file = 'x'}}", "links.keys and links.keys_file are both set"),
        ("links.confirm = 'never'", "links.confirm: Input should be 'auto' or 'button'"),
        ("links.lifetime_days = 91", "links.lifetime_days: Input should be less than or equal to 90"),
        ("links.autosubmit_after_minutes = 0", "links.autosubmit_after_minutes: Input should be greater than"),
        ("exporter.hold_actions = ['rejct']", "exporter.hold_actions: 'rejct' is not an action of Rspamd; these"),
        ("tiers.dangerous_symbols = {a = 1}", "tiers.dangerous_symbols: Input should be a valid tuple"),
    ],
)  # fmt: skip
def test_a_wrong_value_gets_one_sentence_with_its_source(tmp_path: Path, text: str, sentence: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(sentence)
    assert found.endswith(f" ({tmp_path}/quarantine.toml)")


def test_a_wrong_value_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    assert problems(tmp_path, "", QUARANTINE_DIGEST__TIMEZONE="Mars") == [
        "digest.timezone: 'Mars' is not a time zone. Enter a name like Europe/Berlin "
        "(environment variable QUARANTINE_DIGEST__TIMEZONE)"
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("retention_days = 5", "retention_days: there is no such setting"),
        (
            "[store]\nretention_day = 5",
            "store.retention_day: there is no such setting (did you mean store.retention_days?",
        ),
        ("[digests]\nat = '07:00'", "digests: there is no such setting"),
        ("publik_url = 'x'", "publik_url: there is no such setting (did you mean public_url?)"),
        ("[links.keys_file]\npath = 'x'", "links.keys_file: Input is not a valid path"),
        ("[exporter]\nuser_file = '/x'", "exporter.user_file: there is no such setting"),
    ],
)
def test_an_unknown_name_in_the_file_is_a_problem(tmp_path: Path, text: str, sentence: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(sentence)
    assert found.endswith(f" ({tmp_path}/quarantine.toml)")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("QUARANTINE_STORE_URL", "QUARANTINE_STORE__URL"),
        ("QUARANTINE_PUBLIC_URI", "QUARANTINE_PUBLIC_URL"),
        ("QUARANTINE_EXPORTER__PASWORD_FILE", "QUARANTINE_EXPORTER__PASSWORD_FILE"),
    ],
)
def test_an_unknown_variable_is_a_problem(tmp_path: Path, name: str, meant: str) -> None:
    assert problems(tmp_path, "", **{name: "x"}) == [
        f"environment variable {name}: there is no such setting (did you mean {meant}?)"
    ]


def test_other_variables_are_ignored(tmp_path: Path) -> None:
    load_toml(tmp_path, "", QUARANTINE_SOCKET="127.0.0.1:9001", QUARANTINEX="1", PATH="/bin", STORE__URL="x")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = """
        publik_url = "x"
        local_domains = ["example.org"]
        [store]
        url = "sqlite:x"
        [exporter]
        allowed_networks = ["here", "10.0.0.0/33"]
        max_body_bytes = "much"
        [links]
        keys = ["short"]
        [digest]
        timezone = "Mars"
    """
    found = problems(tmp_path, text, QUARANTINE_DIGEST__MAX_ROWS="0", QUARANTINE_NONSENSE__KEY="1")
    assert [line.split(":")[0] for line in found] == [
        "digest.max_rows",
        "digest.timezone",
        "environment variable QUARANTINE_NONSENSE__KEY",
        "exporter.allowed_networks",
        "exporter.allowed_networks",
        "exporter.max_body_bytes",
        "links.keys",
        "mail.from_address is required if local_domains is set",
        "publik_url",
        "store.url",
    ]


def test_one_wrong_value_makes_no_second_problem(tmp_path: Path) -> None:
    text = "local_domains = ['example.org']\n[mail]\nfrom_address = 'wrong'"
    (found,) = problems(tmp_path, text)
    assert found.startswith("mail.from_address: Enter one address like")
    (found,) = problems(tmp_path, "[exporter]\nuser = 'rspamd'\npassword = 7")
    assert found.startswith("exporter.password: ")


def test_a_missing_file_or_one_that_is_not_toml_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="none.toml: cannot be read: No such file or directory"):
        load({"QUARANTINE_CONFIG": str(tmp_path / "none.toml")})
    (found,) = problems(tmp_path, "[store\n", QUARANTINE_LOCAL_DOMAINS="example.org")
    assert found.startswith(f"{tmp_path}/quarantine.toml: is not TOML: ")
    (tmp_path / "latin.toml").write_bytes(b"public_url = '\xe4'")
    with pytest.raises(SettingsError, match="latin.toml: is not UTF-8"):
        load({"QUARANTINE_CONFIG": str(tmp_path / "latin.toml")})


def test_no_problem_shows_a_secret(tmp_path: Path) -> None:
    text = """
        [store]
        url = "postgres-tls://u:topsecret@db"
        [exporter]
        user = "rspamd:topsecret"
        password = "topsecret"
        allowed_networks = ["0.0.0.0/0"]
        [relay]
        url = "smtp://u:topsecret@host:x"
        [mail]
        url = "smtp://topsecret@host"
        [links]
        keys = ["topsecret"]
    """
    assert "topsecret" not in "".join(problems(tmp_path, text))
    assert "topsecret" not in repr(load_toml(tmp_path, "[relay]\nurl = 'smtp://u:topsecret@host'"))


# ---- defaults per domain


def domains_of(settings: Settings) -> Domains:
    """Return the policies by these settings and an empty store."""
    empty = Mock(**{"domains.version.return_value": "", "domains.in_use.return_value": ()})
    return Domains(settings, empty)


DOMAIN = """
    local_domains = ["example.org", "Example.Net", "one@pilot.example"]
    mail.from_address = "q@example.org"
    [digest]
    at = "06:00"
    timezone = "Europe/Berlin"
    [domains."Example.NET"]
    at = ["08:00", "16:00"]
    schedule = "weekdays"
    [domains."pilot.example"]
    timezone = "Asia/Tokyo"
"""


def test_a_domain_may_have_its_own_defaults(tmp_path: Path) -> None:
    domains = domains_of(load_toml(tmp_path, DOMAIN))

    def plan(recipient: str) -> tuple[Any, ...]:
        found = domains.plan(recipient, Preferences())
        return found.schedule, found.at, found.zone.key, found.language

    assert plan("alice@example.org") == ("daily", (time(6),), "Europe/Berlin", "en")
    assert plan("alice@example.net") == ("weekdays", (time(8), time(16)), "Europe/Berlin", "en")
    assert plan("one@pilot.example") == ("daily", (time(6),), "Asia/Tokyo", "en")
    assert plan("alice@sub.example.net") == plan("alice@example.org")


def test_a_wrong_name_in_the_table_of_a_domain_is_reported_with_the_right_one(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, DOMAIN + "timezon = 'UTC'")
    path = tmp_path / "quarantine.toml"
    assert found == f'domains."pilot.example".timezon: there is no such setting (did you mean timezone?) ({path})'


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('name = "A\\nB"', 'name: Leave out " < > \\ and line breaks'),
        (f"name = '{61 * 'A'}'", "name: String should have at most 60 characters"),
        ("from_address = 'q@other.example'", "from_address: q@other.example is not in example.net or a subdomain"),
        ("from_address = 'q@badexample.net'", "from_address: q@badexample.net is not in example.net or a subdomain"),
        ("from_address = 'Q <q@example.net>'", "from_address: Enter one address like"),
        ("admin_address = 'nobody'", "admin_address: Enter one address like"),
        ("domain = 'example.org'", "domain: there is no such setting"),
    ],
)
def test_wrong_values_of_a_domain_are_named_with_the_domain(tmp_path: Path, table: str, expected: str) -> None:
    text = "local_domains = ['example.net']\nmail.from_address = 'q@example.org'\n[domains.'example.net']\n"
    (found,) = problems(tmp_path, text + table)
    assert 'domains."example.net"' in found or 'domains: "example.net"' in found
    assert expected in found and found.endswith(f"({tmp_path}/quarantine.toml)")


def test_a_domain_may_send_from_itself_and_from_a_subdomain(tmp_path: Path) -> None:
    for address in ("q@example.net", "q@Mail.Example.net"):
        table = f"[domains.'example.net']\nfrom_address = '{address}'"
        settings = load_toml(tmp_path, f"local_domains = ['example.net']\nmail.from_address = 'q@example.org'\n{table}")
        assert domains_of(settings).of("alice@example.net").from_address == address


def test_the_former_tables_are_read_and_may_not_stand_beside_the_new_ones(tmp_path: Path) -> None:
    former = DOMAIN.replace("[domains.", "[digest.domains.")
    assert domains_of(load_toml(tmp_path, former)).of("alice@example.net").schedule == "weekdays"
    (found,) = problems(tmp_path, former + '[domains."example.net"]\nname = "Net"')
    assert found.startswith('digest.domains."example.net": the domain has a table in domains as well')


def test_masked_shows_the_domains_and_their_source(tmp_path: Path) -> None:
    assert masked(load_toml(tmp_path, DOMAIN))["domains"] == {
        "example.net": {"at": ["08:00", "16:00"], "schedule": "weekdays"},
        "pilot.example": {"timezone": "Asia/Tokyo"},
    }
    assert load_from({"QUARANTINE_CONFIG": f"{tmp_path}/quarantine.toml"})[2]["domains"].endswith(".toml")


# ---- international domains


@pytest.mark.parametrize(
    "spelling", ["münchen.example", "xn--mnchen-3ya.example", "XN--Mnchen-3ya.Example", "MÜNCHEN。example"]
)
def test_a_domain_may_be_named_in_either_spelling(tmp_path: Path, spelling: str) -> None:
    text = f"""
    local_domains = ["{spelling}", "pilot@{spelling}", "münchen.example"]
    mail.from_address = "q@example.org"
    people.origin = "{spelling}"
    [domains."{spelling}"]
    schedule = "weekdays"
    """
    settings = load_toml(tmp_path, text)
    assert settings.local_domains == ("xn--mnchen-3ya.example", "pilot@xn--mnchen-3ya.example")
    assert settings.people.origin == "xn--mnchen-3ya.example"
    for host in ("münchen.example", "xn--mnchen-3ya.example"):
        assert settings.is_local(f"a@{host}")
        assert domains_of(settings).of(f"a@{host}").schedule == "weekdays"
    assert not settings.is_local("a@munchen.example")
    shown = masked(settings)
    assert shown["local_domains"] == ["münchen.example", "pilot@münchen.example"]
    assert list(shown["domains"]) == ["münchen.example"]


def test_an_address_alone_may_be_named_in_either_spelling(tmp_path: Path) -> None:
    settings = load_toml(tmp_path, "local_domains = ['Pilot@münchen.example']\nmail.from_address = 'q@example.org'")
    assert settings.is_local("pilot@xn--mnchen-3ya.example")
    assert not settings.is_local("other@münchen.example")


def test_a_domain_has_one_table(tmp_path: Path) -> None:
    text = "local_domains = ['münchen.example']\nmail.from_address = 'q@example.org'\n"
    tables = '[domains."münchen.example"]\n[domains."xn--mnchen-3ya.example"]\n'
    (found,) = problems(tmp_path, text + tables)
    assert found.startswith('domains: "xn--mnchen-3ya.example" is the second table of one domain')
    (found,) = problems(tmp_path, text + '[domains."xn--bcher-kva.example"]\n')
    assert found.startswith('domains."bücher.example": this domain is not in local_domains')


# ---- output of settings


def test_masked_shows_everything_but_secrets(tmp_path: Path) -> None:
    text = f"""
        [store]
        url = "postgresql://quarantine:a:b@c@db.example.org,db2/q?sslmode=require&password=topsecret&sslpassword=other"
        [exporter]
        user = "rspamd"
        password = "files:top://secret"
        [relay]
        url = "smtps://user:p%40ss@relay.example.org:465"
        [links]
        keys = ["{"k" * 32}", "{"l" * 32}"]
    """
    shown = masked(load_toml(tmp_path, text))
    assert set(shown) == set(keys())
    stars = "********"
    assert shown["store.url"] == (
        f"postgresql://quarantine:{stars}@db.example.org,db2/q?sslmode=require&password={stars}&sslpassword={stars}"
    )
    assert shown["exporter.password"] == stars
    assert shown["relay.url"] == f"smtps://user:{stars}@relay.example.org:465"
    assert shown["mail.url"] == "smtp://127.0.0.1:25"
    assert shown["links.keys"] == [stars, stars]
    assert shown["digest.at"] == ["07:00"]
    assert shown["exporter.allowed_networks"] == ["127.0.0.0/8", "::1/128"]
    assert shown["exporter.user"] == "rspamd"


@pytest.mark.parametrize("password", ["pass#word", "pass?word", "pass[word", "pass]word", "#", "p%40ss", "a:b"])
def test_no_password_that_postgresql_takes_is_shown(tmp_path: Path, password: str) -> None:
    url = f"postgresql://quarantine:{password}@db.example.org/q?connect_timeout=1"
    assert conninfo_to_dict(url)["password"] == password.replace("%40", "@")
    shown = masked(load_toml(tmp_path, f'store.url = "{url}"'))["store.url"]
    assert shown == "postgresql://quarantine:********@db.example.org/q?connect_timeout=1"


def test_masked_shows_the_defaults(tmp_path: Path) -> None:
    shown = masked(load_toml(tmp_path, "[links]\nkeys_file = '/etc/links.keys'"))
    assert shown["store.url"] == "files:var/quarantine"
    assert shown["exporter.password"] is None
    assert shown["links.keys_file"] == "/etc/links.keys"


# ---- local addresses


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("alice@example.org", True),
        ("Alice@EXAMPLE.org", True),
        ('"a@b"@example.org', True),
        ("pilot@example.com", True),
        ("Pilot@Example.com", True),
        ("other@example.com", False),
        ("alice@sub.example.org", False),
        ("alice@notexample.org", False),
        ("example.org", False),
        ("example.org@example.net", False),
        ("pilot@example.com@example.net", False),
        ("@example.net", False),
        ("", False),
    ],
)
def test_only_listed_domains_and_addresses_are_local(tmp_path: Path, address: str, local: bool) -> None:
    text = "local_domains = ['example.org', 'Pilot@example.com']\n[mail]\nfrom_address = 'q@example.org'"
    assert load_toml(tmp_path, text).is_local(address) is local


# ---- the value of store.url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("files:var/quarantine", StoreUrl(Path("var/quarantine"))),
        ("files:///srv/quarantine", StoreUrl(Path("/srv/quarantine"))),
        ("files:/srv/quarantine", StoreUrl(Path("/srv/quarantine"))),
        ("files://var/quarantine", StoreUrl(Path("var/quarantine"))),
        ("files:c:/quarantine", StoreUrl(Path("c:/quarantine"))),
        ("postgresql://u:secret@db:5432/q", StoreUrl(None, "postgresql://u:secret@db:5432/q")),
        ("postgres://u:secret@db/q", StoreUrl(None, "postgres://u:secret@db/q")),
    ],
)
def test_a_store_is_a_folder_or_a_database(text: str, expected: StoreUrl) -> None:
    assert StoreUrl.parse(text) == expected
    assert "secret" not in repr(StoreUrl.parse(text))


@pytest.mark.parametrize(
    ("text", "unlike"),
    [
        ("sqlite:x", ", not sqlite:…"),
        ("mysql://u:secret@db/q", ", not mysql:…"),
        ("sqlite:", ""),
        ("sqlite://", ""),
        ("files:", ""),
        ("postgresql://", ""),
        ("var/quarantine", ""),
        ("host=db password=secret:x", ""),  # is not a scheme, and may be a password
        (":x", ""),
        ("", ""),
    ],
)
def test_any_other_store_is_an_error_that_shows_no_password(text: str, unlike: str) -> None:
    with pytest.raises(ValueError, match="^expected") as error:
        StoreUrl.parse(text)
    assert str(error.value) == f"expected files:PATH, files:///abs/path or postgresql://…{unlike}"
