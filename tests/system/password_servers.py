"""OpenLDAP's slapd and Dovecot on loopback, with Debian's packages, an authority of their own and a few people."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.system.services import connects, process, wait_for

BASE = "dc=example,dc=org"
PORTAL_DN, PORTAL_PASSWORD = f"cn=portal,{BASE}", "portal's own"
ADMINISTRATORS = f"cn=quarantine-administrators,{BASE}"
# Two people have the address twice@.
_PEOPLE = {
    "alice": ("alice@example.org a.lice@example.org", "secret of alice"),
    "bob": ("bob@example.org", 'q"uo\\te'),
    "juergen": ("juergen@example.org", "pässwört"),
    "odd": ("x*y@example.org", "secret of odd"),
    "one": ("twice@example.org", "secret of one"),
    "two": ("twice@example.org", "secret of two"),
}
_ONLY_IN_DOVECOT = {"dora@example.org": "secret of dora"}
# As in Active Directory, whose schema slapd does not have: they are values of `description`.
_PROXY_ADDRESSES = (
    "smtp:bobby@example.org",
    "SMTP:robert@example.org",
    "sip:bob@example.org",
    "X500:/o=example/cn=bob",
)

_SLAPD_CONF = """include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {home}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
TLSCACertificateFile {home}/ca.pem
TLSCertificateFile {home}/server.pem
TLSCertificateKeyFile {home}/server-key.pem
security simple_bind=128
database mdb
suffix {base}
directory {home}/db
index objectClass,mail eq
limits dn.exact="{portal}" size.prtotal=unlimited
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by dn="{portal}" read by anonymous auth by users read
"""

_DOVECOT_CONF = """base_dir = {home}/run
log_path = {home}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = required
ssl_cert = <{home}/server.pem
ssl_key = <{home}/server-key.pem
ssl_dh =
disable_plaintext_auth = yes
mail_location = maildir:{home}/mail/%u
first_valid_uid = 0
default_internal_user = dovecot
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {starttls}
  }}
  inet_listener imaps {{
    port = {implicit}
  }}
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {home}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={home}/home/%u
}}
login_trusted_networks = 127.0.0.1/32
"""


@dataclass(frozen=True)
class PasswordServers:
    """The ports of the servers, the certificate of the authority that signed theirs, and the log of their requests."""

    ca_file: Path
    log: Path
    ldap: int
    ldaps: int
    imap: int
    imaps: int


@contextmanager
def slapd_and_dovecot(home: Path, more_entries: Sequence[str] = ()) -> Iterator[PasswordServers]:
    """Run both until the block ends. ``more_entries``: of the directory, as `person` returns them."""
    servers = PasswordServers(home / "ca.pem", home / "servers.log", *(free_port() for _ in range(4)))
    _make_certificates(home)
    conf = home / "slapd.conf"
    conf.write_text(_SLAPD_CONF.format(home=home, base=BASE, portal=PORTAL_DN))
    (home / "db").mkdir()
    subprocess.run(["slapadd", "-f", conf], input=_ldif(more_entries).encode(), check=True, capture_output=True)
    users = {addresses.split()[0]: password for addresses, password in _PEOPLE.values()} | _ONLY_IN_DOVECOT
    (home / "users").write_text("".join(f"{user}:{password}\n" for user, password in users.items()))
    dovecot = home / "dovecot.conf"
    dovecot.write_text(_DOVECOT_CONF.format(home=home, starttls=servers.imap, implicit=servers.imaps))
    listen = f"ldap://127.0.0.1:{servers.ldap} ldaps://127.0.0.1:{servers.ldaps}"
    with (
        process(["slapd", "-f", str(conf), "-h", listen, "-d", "stats"], servers.log),
        process(["dovecot", "-F", "-c", str(dovecot)], servers.log),
    ):
        for port in (servers.ldap, servers.ldaps, servers.imap, servers.imaps):
            wait_for(lambda port=port: connects(port), details=servers.log.read_text)  # type: ignore[misc]
        yield servers


def person(uid: str, password: str, *attributes: str) -> str:
    """Return the entry of a person. ``attributes``: more lines. Values are UTF-8, read by slapadd only in base64."""
    names = f"dn: uid={uid},{BASE}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}"
    return "\n".join([names, *attributes, f"userPassword:: {b64encode(password.encode()).decode()}"])


def _ldif(more_entries: Sequence[str]) -> str:
    """Return all entries of the directory."""
    entries = [
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example",
        f"dn: {PORTAL_DN}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: portal\n"
        f"userPassword: {PORTAL_PASSWORD}",
    ]
    for uid, (addresses, password) in _PEOPLE.items():
        attributes = [f"mail: {address}" for address in addresses.split()]
        attributes += [f"description: {text}" for text in _PROXY_ADDRESSES] if uid == "bob" else []
        attributes += [f"memberOf: {ADMINISTRATORS}"] if uid == "alice" else []  # slapadd does not run the overlay
        entries.append(person(uid, password, *attributes))
    entries.append(
        f"dn: {ADMINISTRATORS}\nobjectClass: groupOfNames\ncn: quarantine-administrators\nmember: uid=alice,{BASE}"
    )
    return "\n\n".join([*entries, *more_entries]) + "\n"


def _make_certificates(home: Path) -> None:
    """Write the certificate of an authority, and one that it signed for localhost."""

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=home, check=True, capture_output=True)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    openssl(f"req -x509 {key} -days 2 -subj /CN=authority -keyout ca-key.pem -out ca.pem")
    openssl(f"req {key} -subj /CN=localhost -keyout server-key.pem -out server.csr")
    (home / "names").write_text("subjectAltName=DNS:localhost")
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile names -out server.pem"
    )
