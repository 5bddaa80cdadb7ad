"""The sections of what Rspamd posts, how it is judged, and requests to Rspamd."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from portal.model.message import ACTIONS
from portal.settings.values import Network, Section, Words, words


class ExporterSettings(Section):
    """Posts of Rspamd's metadata exporter: which are accepted, and which messages are held."""

    user: str | None = Field(None, description="User name for HTTP Basic authentication, as in Rspamd's rule.")
    password: SecretStr | None = Field(
        None,
        description="Password for HTTP Basic authentication. Without one, `allowed_networks` accepts loopback networks "
        "only.",
    )
    allowed_networks: Annotated[tuple[Network, ...], BeforeValidator(words)] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks of hosts that may post, in CIDR notation.",
    )
    max_body_bytes: int = Field(
        80 * 2**20,
        ge=2**16,
        le=2**31,
        description="Posts whose body is larger, before or after decompression, are answered with status 413.",
    )
    only_symbols: Words = Field(
        (),
        description="Hold only messages with at least one of these symbols; empty: all messages. `*` and `?` are "
        "wildcards.",
    )
    hold_actions: Words = Field(
        ("reject", "discard"),
        description="Hold only messages to which Rspamd applied one of these actions. Messages with `quarantine` also "
        "stay in Postfix's hold queue; messages with `add header` and `rewrite subject` are also delivered.",
    )

    @field_validator("hold_actions")
    @classmethod
    def _as_exported(cls, actions: tuple[str, ...]) -> tuple[str, ...]:
        # Rspamd's configuration has "add_header" for the action that its replies call "add header".
        names = tuple(action.lower().replace("_", " ") for action in actions)
        for name in names:
            if name not in ACTIONS:
                raise ValueError(f"{name!r} is not an action of Rspamd; these are: {', '.join(ACTIONS)}")
        return names

    @model_validator(mode="after")
    def _guarded(self) -> ExporterSettings:
        if (self.user is None) != (self.password is None):
            raise ValueError("exporter.user and exporter.password go together: set both or neither")
        if self.password is not None and not self.password.get_secret_value():
            raise ValueError("exporter.password is empty")
        if self.user is not None and (not self.user or ":" in self.user):
            raise ValueError("exporter.user is empty or has a colon, which HTTP Basic does not allow (RFC 7617, 2)")
        if self.password is None and not all(network.is_loopback for network in self.allowed_networks):
            raise ValueError(
                "exporter.allowed_networks includes other hosts, so exporter.user and exporter.password are needed"
            )
        return self


class TiersSettings(Section):
    """Symbols that make a message dangerous or suspicious. `*` and `?` are wildcards."""

    # Rspamd 3.4 to 4.1: plugins/antivirus.lua and lualib/lua_scanners (a scanner without `symbol` is named after its
    # rule), plugins/phishing.lua, scores.d and composites.conf. Not `*VIRUS*`: CLAM_VIRUS_FAIL is a scanner's failure.
    dangerous_symbols: Words = Field(
        (
            "VIRUS", "*_VIRUS", "*_MALWARE", "CLAMAV", "ESET", "DRWEB", "SOPHOS", "AVAST", "FPROT", "SAVAPI",
            "KASPERSKY", "KASPERSKY_SE", "VIRUSTOTAL", "VIRUSTOTAL_LOW", "VIRUSTOTAL_MEDIUM", "VIRUSTOTAL_HIGH",
            "METADEFENDER", "METADEFENDER_LOW", "METADEFENDER_MEDIUM", "METADEFENDER_HIGH", "EXPURGATE_DANGEROUS_*",
            "ICAP", "OLETOOLS", "EICAR", "JUST_EICAR",
            "PHISHING", "*_PHISHING", "PHISHED_URL", "PHISHED_OPENPHISH", "PHISHED_PHISHTANK",
            "PHISHED_GENERIC_SERVICE", "PHISH_EMOTION", "*_PHISH", "DBL_BOTNET", "DBL_ABUSE_BOTNET", "PH_SURBL_MULTI",
            "MW_SURBL_MULTI",
        ),
        description="Dangerous: only an administrator can release the message; its recipients can request that.",
    )  # fmt: skip
    # plugins/mime_types.lua and antivirus.lua, rules/misc.lua, rules/headers_checks.lua, lualib/lua_content/pdf.lua,
    # scores.d. Not `FORGED_*`: FORGED_SENDER_MAILLIST and similar symbols explain a forged sender as harmless.
    suspicious_symbols: Words = Field(
        (
            "*_ENCRYPTED", "*_MACRO", "MIME_ENCRYPTED_ARCHIVE", "MIME_OBFUSCATED_ARCHIVE", "MIME_ARCHIVE_IN_ARCHIVE",
            "MIME_EXE_IN_GEN_SPLIT_RAR", "MIME_BAD_EXTENSION", "MIME_DOUBLE_BAD_EXTENSION", "MIME_BAD_ATTACHMENT",
            "MIME_BAD_UNICODE", "PDF_JAVASCRIPT", "PDF_SUSPICIOUS", "SPOOF_DISPLAY_NAME", "SPOOF_REPLYTO",
            "FROM_NEQ_DISPLAY_NAME", "FREEMAIL_REPLYTO_NEQ_FROM_DOM", "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE",
            "BLACKLIST_DMARC", "OMOGRAPH_URL", "URL_HOMOGRAPH_ATTACK", "URL_RTL_OVERRIDE", "URL_ZERO_WIDTH_SPACES",
            "ZERO_WIDTH_SPACE_URL", "URL_OBFUSCATED_TEXT", "URL_NUMERIC_IP_USER", "URL_USER_*", "R_SUSPICIOUS_URL",
            "HTTP_TO_IP", "ZERO_FONT", "DATA_URI_OBFU",
            "EXE_*", "SINGLE_FILE_*", "UDF_*", "MIME_BAD_EXT_*", "MISIDENTIFIED_RAR", "HAS_FILE_URL",
            "HAS_IPFS_GATEWAY_URL", "LEAKED_PASSWORD_SCAM", "GPT_SCAM", "VADE_SCAM", "VADE_SUSPECT", "CRACKED_SURBL",
            "ABUSE_SURBL",
        ),
        description="Suspicious: the message is released only after a press of a button.",
    )  # fmt: skip


class RspamdSettings(Section):
    """Rspamd's controller, which scans held messages for viruses, after holding and again before a release, and whose
    statistics may be trained; see docs/learning.md."""

    url: str | None = Field(
        None,
        description="URL of the controller, as `http://127.0.0.1:11334`. Without it, messages are not scanned.",
    )
    password: SecretStr | None = Field(
        None, description="The controller's password. Not needed if `secure_ip` of its worker includes this host."
    )
    scan: Literal["on", "off"] = Field(
        "on",
        description="`off`: messages are not scanned for viruses, and allow rules act without a scan. With `on` they "
        "need a scan that found nothing.",
    )
    scan_groups: Words = Field(
        ("antivirus",),
        description="Groups of symbols whose modules scan; empty: messages are not scanned.",
    )
    scan_max_bytes: int = Field(
        20_000_000,
        ge=2**16,
        le=2**31,
        description="Larger messages are not scanned, and thus at least suspicious. At most the limit of the scanner "
        "(`max_size` in Rspamd's antivirus.conf, `StreamMaxLength` of clamd): it ignores larger ones without notice.",
    )
    scan_valid_minutes: int = Field(
        60, ge=0, le=10_080, description="A release within this time after a scan is not scanned once more."
    )
    release_unscanned: bool = Field(
        False,
        description="If the scanner does not answer: `false` lets releases wait, `true` releases without a scan.",
    )
    block_map: Path | None = Field(
        None,
        description="Absolute path of the file with the block rules for Rspamd, as "
        "`/var/lib/quarantine-map/block.map`; see docs/policy.md. Without it, Rspamd still delivers mail "
        "of blocked senders that it does not find to be spam.",
    )

    @field_validator("block_map")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("expected an absolute path: the service and the commands start in different folders")
        return path

    learn: Literal["off", "operators", "agreed"] = Field(
        "off",
        description="Whose decisions train Rspamd's statistics (Bayes): `off`: nobody's; `operators`: releases and "
        "`confirm-spam` of operators; `agreed`: also those of recipients, if `learn_agreed` of them agree.",
    )
    learn_agreed: int = Field(
        3,
        ge=2,
        le=1000,
        description="Number of recipients who must release a message or campaign, or report it as spam, before it is "
        "learned.",
    )

    @model_validator(mode="after")
    def _reachable(self) -> RspamdSettings:
        if self.learn != "off" and self.url is None:
            raise ValueError("rspamd.learn needs rspamd.url, the URL of the controller")
        return self

    @field_validator("url")
    @classmethod
    def _controller(cls, url: str | None) -> str | None:
        try:
            parts = urlsplit(url or "http://localhost")
            parts.port  # noqa: B018 - validated only on access
        except ValueError as error:
            raise ValueError("expected a URL like http://127.0.0.1:11334") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError("expected a URL like http://127.0.0.1:11334, without a path")
        return url or None
