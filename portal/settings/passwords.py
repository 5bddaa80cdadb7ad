"""The sections `ldap` and `imap`: servers that check passwords. See docs/sign-in.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from portal.settings.values import Section, Words

_CA_FILE = "A file with the certificates (PEM) of the authority that signed the server's. Default: those of the system."
_TIMEOUT = "How long each answer of the server may take, in seconds. A check of a password ends after 30 s in any case."


class LdapSettings(Section):
    """Sign-in with the password of an LDAP directory or Active Directory; see docs/sign-in.md."""

    uri: str = Field(
        "",
        description="`ldaps://HOST[:PORT]`, or `ldap://HOST[:PORT]` with StartTLS. Empty: no sign-in by "
        "passwords of a directory.",
    )
    ca_file: Path | None = Field(None, description=_CA_FILE)
    bind_dn: str = Field(
        "", description="The portal's own account, which may read addresses and groups. Empty: it searches anonymously."
    )
    bind_password: SecretStr | None = Field(None, description="Its password.")
    base: str = Field("", description="The entry below which people are, like `ou=people,dc=example,dc=org`.")
    filter: str = Field(
        "(mail={address})",
        description="Finds the entry of a person. `{address}` is the recipient's address in lower case. If several "
        "entries match, nobody can sign in with that address.",
    )
    address_attributes: Words = Field(
        ("mail", "proxyAddresses"),
        description="The attributes with a person's addresses, which only administrators may change. In "
        "`proxyAddresses`, `SMTP:` marks the primary address. Without a mark, it is the only value of the first "
        "attribute.",
    )
    group_attribute: str = Field("memberOf", description="The attribute with a person's groups.")
    group_filter: str = Field(
        "",
        description="Finds the groups of a person instead of `ldap.group_attribute`; `{dn}` is the person's entry. "
        "For nested groups in Active Directory: `(member:1.2.840.113556.1.4.1941:={dn})`.",
    )
    group_base: str = Field("", description="The entry below which groups are. Default: `ldap.base`.")
    timeout_seconds: int = Field(5, ge=1, le=10, description=_TIMEOUT)

    @field_validator("uri")
    @classmethod
    def _reachable(cls, uri: str) -> str:
        try:
            parts = urlsplit(uri)
            port = parts.port
        except ValueError as error:
            raise ValueError("the host is invalid, or the port is not a number from 1 to 65535") from error
        if uri and (parts.scheme not in ("ldap", "ldaps") or not parts.hostname or port == 0):
            raise ValueError("expected ldaps://host:port or ldap://host:port")
        if parts.username or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("expected nothing but the host and the port: the base and the account are other settings")
        return uri

    @field_validator("filter")
    @classmethod
    def _finds_one(cls, text: str) -> str:
        if "{address}" not in text or text.count("(") != text.count(")") or (text[:1], text[-1:]) != ("(", ")"):
            raise ValueError("expected a filter with {address} in it, like (mail={address})")
        return text

    @field_validator("group_filter")
    @classmethod
    def _finds_groups(cls, text: str) -> str:
        if text and ("{dn}" not in text or text.count("(") != text.count(")") or (text[0], text[-1]) != ("(", ")")):
            raise ValueError("expected a filter with {dn} in it, like (member={dn})")
        return text

    @model_validator(mode="after")
    def _complete(self) -> LdapSettings:
        if self.uri and not self.base:
            raise ValueError("ldap.base is required if ldap.uri is set")
        if bool(self.bind_dn) != bool(self.bind_password and self.bind_password.get_secret_value()):
            raise ValueError("ldap.bind_dn and ldap.bind_password: set both, or neither")
        return self


class ImapSettings(Section):
    """Sign-in with the password of the IMAP server; see docs/sign-in.md."""

    host: str = Field("", description="The server's name in its certificate. Empty: no sign-in with IMAP passwords.")
    port: int | None = Field(None, ge=1, le=65535, description="Default: 993, or 143 with `starttls`.")
    tls: Literal["implicit", "starttls"] = Field(
        "implicit", description="`implicit`: the connection begins with TLS; `starttls`: STARTTLS is required."
    )
    ca_file: Path | None = Field(None, description=_CA_FILE)
    user: Literal["address", "local-part"] = Field(
        "address",
        description="The user name: the whole address, or the part before the `@`, which is possible only with one "
        "domain in `local_domains`.",
    )
    timeout_seconds: int = Field(10, ge=1, le=20, description=f"{_TIMEOUT} Dovecot delays answers to wrong passwords.")

    @property
    def tcp_port(self) -> int:
        """The port to connect to."""
        return self.port or (993 if self.tls == "implicit" else 143)
