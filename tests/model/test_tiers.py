"""Symbols that make a message suspicious or dangerous: the rule, and the shipped patterns."""

from __future__ import annotations

from typing import Any

import pytest

from portal.model.message import Flag, Symbol, Tier
from portal.model.tiers import Tiers
from portal.settings import TiersSettings
from tests.builders import export

SHIPPED = Tiers(TiersSettings().dangerous_symbols, TiersSettings().suspicious_symbols)


def tier(*symbols: Symbol, tiers: Tiers = SHIPPED, **overrides: Any) -> Tier:
    return tiers.of(export(symbols=symbols, **overrides))


# Names as Rspamd 3.4 to 4.1 has them.
DANGEROUS = [
    "CLAM_VIRUS",  # plugins/antivirus.lua and its documentation
    "CLAMAV",  # a scanner's rule without `symbol`
    "KASPERSKY_SE",
    "SOPHOS_VIRUS",
    "JUST_EICAR",
    "OLETOOLS",  # lualib/lua_scanners/oletools.lua
    "VADE_MALWARE",  # lualib/lua_scanners/vadesecure.lua
    "VADE_PHISHING",
    "PHISHING",  # plugins/phishing.lua, scores.d/phishing_group.conf
    "PHISHED_OPENPHISH",
    "PHISHED_PHISHTANK",
    "PHISHED_GENERIC_SERVICE",
    "HACKED_WP_PHISHING",  # composites.conf
    "DBL_PHISH",  # scores.d/surbl_group.conf
    "DBL_ABUSE_PHISH",
    "DBL_MALWARE",
    "DBL_ABUSE_MALWARE",
    "PH_SURBL_MULTI",
    "MW_SURBL_MULTI",
]

SUSPICIOUS = [
    "CLAM_VIRUS_ENCRYPTED",  # plugins/antivirus.lua
    "CLAM_VIRUS_MACRO",
    "OLETOOLS_MACRO",
    "MIME_ENCRYPTED_ARCHIVE",  # plugins/mime_types.lua
    "MIME_OBFUSCATED_ARCHIVE",
    "MIME_ARCHIVE_IN_ARCHIVE",
    "MIME_EXE_IN_GEN_SPLIT_RAR",
    "MIME_BAD_EXTENSION",
    "MIME_DOUBLE_BAD_EXTENSION",
    "MIME_BAD_UNICODE",
    "PDF_ENCRYPTED",  # scores.d/content_group.conf
    "PDF_JAVASCRIPT",
    "PDF_SUSPICIOUS",
    "SPOOF_DISPLAY_NAME",  # rules/misc.lua
    "SPOOF_REPLYTO",
    "FROM_NEQ_DISPLAY_NAME",
    "DMARC_POLICY_REJECT",
    "DMARC_POLICY_QUARANTINE",
    "OMOGRAPH_URL",
    "EXE_ARCHIVE_CLICKBAIT_FILENAME",  # rules/archives.lua
    "EXE_IN_ARCHIVE",
    "EXE_IN_MISIDENTIFIED_RAR",
    "MISIDENTIFIED_RAR",
    "SINGLE_FILE_ARCHIVE_WITH_EXE",
    "UDF_COMPRESSION_500PLUS",
    "MIME_BAD_EXT_WITH_BAD_UNICODE",  # composites.conf
    "MIME_BAD_EXT_IN_OBFUSCATED_ARCHIVE",
    "HAS_FILE_URL",  # rules/url.lua
    "HAS_IPFS_GATEWAY_URL",
]

NOTES = [
    "CLAM_VIRUS_FAIL",  # the scanner could not be reached: no finding about the mail
    "CLAMAV_FAIL",
    "VADE_FAIL",
    "OLETOOLS_FAIL",
    "VADE_CHECK",
    "PHISHED_WHITELISTED",  # an exception
    "FORGED_SENDER_MAILLIST",
    "FORGED_SENDER_FORWARDING",
    "RBL_VIRUSFREE_BOTNET",  # a list of that name
    "DBL_BLOCKED",  # the list refused to answer
    "BAYES_SPAM",
    "R_SPF_FAIL",
    "R_DKIM_REJECT",
    "GTUBE",
    "DMARC_POLICY_SOFTFAIL",
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_viruses_and_phishing_are_dangerous(name: str) -> None:
    assert tier(Symbol("BAYES_SPAM", 5.0), Symbol(name, 4.0)) is Tier.DANGEROUS


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_spoofing_and_strange_attachments_are_suspicious(name: str) -> None:
    assert tier(Symbol("BAYES_SPAM", 5.0), Symbol(name, 4.0)) is Tier.SUSPICIOUS


@pytest.mark.parametrize("name", NOTES)
def test_symbols_without_a_bad_finding_leave_mail_spam(name: str) -> None:
    assert tier(Symbol("BAYES_SPAM", 5.0), Symbol(name, 4.0)) is Tier.SPAM


def test_mail_without_symbols_is_spam() -> None:
    assert tier() is Tier.SPAM


def test_a_scanner_whose_symbol_has_no_score_is_believed() -> None:
    """A rule with ``action = "reject"`` and no ``score`` registers its symbol with score 0."""
    assert tier(Symbol("CLAM_VIRUS", 0.0)) is Tier.DANGEROUS


def test_a_negative_score_is_in_favour_of_the_mail() -> None:
    assert tier(Symbol("PHISHING", -1.0), Symbol("PDF_ENCRYPTED", -0.1)) is Tier.SPAM


@pytest.mark.parametrize("flag", Flag)
def test_metadata_that_was_lost_makes_mail_suspicious(flag: Flag) -> None:
    assert tier(flags=frozenset({flag})) is Tier.SUSPICIOUS
    assert tier(Symbol("CLAM_VIRUS", 9.0), flags=frozenset({flag})) is Tier.DANGEROUS


def test_the_worst_symbol_counts_at_any_position() -> None:
    virus, macro = Symbol("CLAM_VIRUS", 1.0), Symbol("X_MACRO", 1.0)
    assert tier(virus, macro) is tier(macro, virus) is Tier.DANGEROUS


def test_a_site_sets_its_own_patterns_in_any_case() -> None:
    own = Tiers(("site_BAD_?",), ("Site_*",))
    assert tier(Symbol("SITE_bad_1", 1.0), tiers=own) is Tier.DANGEROUS
    assert tier(Symbol("site_bad_10", 1.0), tiers=own) is Tier.SUSPICIOUS
    assert tier(Symbol("CLAM_VIRUS", 1.0), tiers=own) is Tier.SPAM
