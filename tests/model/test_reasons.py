"""Rspamd's findings in words, and senders as they may be shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from portal.mail import languages
from portal.model.message import DeliveryId, Flag, Message, Symbol, Tier
from portal.model.reasons import explain, why
from portal.model.sender import sender_shown
from portal.settings import TiersSettings
from portal.stores import Store
from tests import builders


@pytest.fixture
def message(store: Store) -> Message:
    return store.deliveries.get(DeliveryId(builders.hold(store).id, 0)).message


def test_the_heaviest_findings_come_first_and_only_once(message: Message) -> None:
    symbols = (
        Symbol("SUBJ_ALL_CAPS", 1.0),
        Symbol("BAYES_SPAM", 5.0),
        Symbol("FUZZY_DENIED", 7.0),
        Symbol("RAZOR", 6.5),
        Symbol("DKIM_ALLOW", -9.0),
        Symbol("R_SPF_FAIL", 0.0),
    )
    assert why(replace(message, symbols=symbols)) == [
        "The same message was reported as spam elsewhere",
        "The text resembles known spam",
        "The subject is all capitals",
    ]


def test_dangerous_findings_come_first(message: Message) -> None:
    symbols = (Symbol("BAYES_SPAM", 9.0), Symbol("CLAM_VIRUS", 0.1))
    assert "virus" in why(replace(message, symbols=symbols, verdict_tier=Tier.DANGEROUS))[0]


def test_there_is_always_a_reason(message: Message) -> None:
    for symbols in ((), (Symbol("X1", 1.0),), (Symbol("X1", 9.0),), (Symbol("X1", 1.0), Symbol("X2", 1.0))):
        for tier in Tier:
            assert len(why(replace(message, symbols=symbols, verdict_tier=tier))) == 1


def test_lost_findings_are_shown(message: Message) -> None:
    reasons = why(replace(message, symbols=(), flags=frozenset({Flag.SYMBOLS})))
    assert reasons[-1] == "The spam filter's report is incomplete"


def test_a_forced_verdict_is_shown(message: Message) -> None:
    symbols = (Symbol("BAYES_SPAM", 5.0),)
    for flags in ({Flag.FORCED}, {Flag.FORCED, Flag.SYMBOLS}):
        *_, last = why(replace(message, symbols=symbols, flags=frozenset(flags)))
        assert last == (
            "Some checks may have been skipped" if len(flags) == 1 else "The spam filter's report is incomplete"
        )


_STOCK = [
    line.split("\t")
    for line in (Path(__file__).parents[1] / "data/rspamd-symbols.tsv").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("version", ["3.4", "4.1.6"])
def test_every_stock_symbol_with_a_score_of_one_or_more_has_words(version: str) -> None:
    scores = {fields[0]: fields[1 + (version == "4.1.6")] for fields in _STOCK}
    symbols = [Symbol(name, float(score)) for name, score in scores.items() if score]
    assert len(symbols) > 250
    assert [s.name for s in symbols if explain(s) in ("A sign of spam", "A strong sign of spam")] == []


_VIRUS = "virus scanner found malware"
_SUBJECT = "The subject looks like spam"


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [  # with the description by Rspamd (scores.d/, composites.conf, rules/) where the name misleads
        ("RBL_VIRUSFREE_BOTNET", "a server known for spam"),  # From address is listed in virusfree.cz BL
        ("RBL_SPAMHAUS_XBL", "a server known for spam"),
        ("RBL_SPAMHAUS_PBL", "directly from a computer"),  # addresses of home connections
        ("BLACKLIST_DMARC", "someone else"),  # comes from the whitelisted domain and has failed DMARC and DKIM
        ("BLACKLIST_SPF_DKIM", "someone else"),
        ("BLACKLIST_DKIM", "someone else"),
        ("FROM_BLACKLIST", "your mail server's blocklist"),  # as in the documentation of multimap
        ("HFILTER_FROMHOST_NOT_FQDN", "domain cannot receive email"),  # FROM host
        ("HFILTER_MID_NOT_FQDN", "email standards"),  # Message-ID host
        ("HFILTER_RCPT_BOUNCEMOREONE", "email standards"),  # Message from bounce and over 1 recipient
        ("HFILTER_URL_ONLY", "a link and hardly any text"),  # URL only in body
        ("HFILTER_HELO_BADIP", "not set up like a mail server"),
        ("HFILTER_HOSTNAME_5", "not set up like a mail server"),
        ("FORGED_GENERIC_RECEIVED3", "delivery path"),
        ("INVALID_POSTFIX_RECEIVED", "delivery path"),
        ("FORGED_MSGID_YAHOO", "another email provider"),
        ("FORGED_SENDER", "differs from the sending address"),
        ("FORGED_RECIPIENTS", "Not addressed to you"),
        ("FORGED_MUA_OUTLOOK", "email program did not create"),
        ("MISSING_MIMEOLE", "email program did not create"),  # fake Outlook or fake Exchange
        ("URL_IN_SUBJECT", _SUBJECT),
        ("REPLYTO_EXCESS_BASE64", "unlike those of normal email programs"),
        ("REPLYTO_UNPARSEABLE", "email standards"),
        ("REPLYTO_INVALID", "email standards"),
        ("REPLYTO_LOCALPART_LONG", "email standards"),
        ("REPLYTO_DOMAIN_LONG", "email standards"),
        ("REPLYTO_EMAIL_HAS_TITLE", "name is unusual"),
        ("HEADER_REPLYTO_EMPTY_DELIMITER", "email standards"),
        ("REPLYTO_EQ_TO_ADDR", "Replies go back to the recipient"),  # Reply-To is the same as the To address
        ("REPLYTO_DOM_NEQ_FROM_DOM", "Replies go to a different address"),
        ("REPLYTO_DOM_EQ_FROM_DOM", "A sign of spam"),  # not a different address
        ("FREEMAIL_REPLYTO_NEQ_FROM_DOM", "a different address at a free email provider"),
        ("REPLYTO_MX_NONE", "domain cannot receive email"),
        ("MX_BAD", "your mail server's blocklist"),  # operator-defined
        ("SUBJECT_NEEDS_ENCODING", "email standards"),
        ("SUBJ_EXCESS_QP", "unlike those of normal email programs"),
        ("SUBJECT_HAS_CURRENCY", _SUBJECT),
        ("BOGUS_ENCRYPTED_AND_TEXT", "email standards"),
        ("DMARC_POLICY_SOFTFAIL", "could not be verified"),  # the policy is p=none
        ("DMARC_POLICY_REJECT", "rejects this message as forged"),
        ("R_SPF_PLUSALL", "allows every server"),
        ("MULTIPLE_FROM", "more than one sender"),
        ("MULTIPLE_UNIQUE_HEADERS", "email standards"),
        ("MIME_BAD_UNICODE", "disguised as another file type"),  # Filename with obscured unicode characters
        ("EXE_IN_MISIDENTIFIED_RAR", "a program hidden in an archive"),
        ("ZERO_WIDTH_SPACE_URL", "hides its destination"),
        ("R_SUSPICIOUS_URL", "hides its destination"),
        ("HTML_META_REFRESH_URL", "hides its destination"),
        ("DBL_ABUSE_REDIR", "hides its destination"),  # spammed redirector domain
        ("URL_HOMOGRAPH_ATTACK", "look-alike letters"),
        ("URL_NUMERIC_IP_USER", "an IP address"),
        ("URL_SUSPICIOUS_TLD", "a suspicious link"),
        ("URIBL_GREY", "often found in spam"),
        ("SEM_URIBL_FRESH15", "newly registered"),  # registered in the past 15 days
        ("SEM_URIBL", "known spam site"),
        ("DBL_SPAM", "known spam site"),
        ("DBL_PHISH", "known phishing site"),
        ("DBL_MALWARE", "site that spreads malware"),
        ("DBL_BOTNET", "malware"),  # botnet C&C
        ("OMOGRAPH_URL", "look-alike letters"),  # both latin and non-latin characters
        ("R_MIXED_CHARSET_URL", "look-alike letters"),
        ("SUSPICIOUS_BOUNDARY2", "unlike those of normal email programs"),
        ("CTYPE_MISSING_DISPOSITION", "email standards"),
        ("DATE_IN_FUTURE", "The date"),
        ("INVALID_DATE", "The date"),
        ("RCVD_ILLEGAL_CHARS", "email standards"),
        ("FREEMAIL_AFF", "advance payment"),
        ("VIOLATED_DIRECT_SPF", "not authorized by the sender's domain"),
        ("R_UNDISC_RCPT", "Not addressed to you"),
        ("UNDISC_RCPTS_BULK", "Bulk"),
        ("MICROSOFT_SPAM", "Another spam filter"),
        ("HACKED_WP_PHISHING", "phishing"),
        # plugins/antivirus.lua and lualib/lua_scanners: SYMBOL_ENCRYPTED, SYMBOL_MACRO, SYMBOL_FAIL
        ("CLAM_VIRUS", _VIRUS),
        ("VIRUSTOTAL_HIGH", _VIRUS),
        ("METADEFENDER_LOW", _VIRUS),
        ("CLAM_VIRUS_ENCRYPTED", "encrypted archive"),
        ("CLAM_VIRUS_MACRO", "document with a macro"),
        ("CLAM_VIRUS_FAIL", "A sign of spam"),
        ("OLETOOLS_FAIL", "A sign of spam"),
        ("VIRUSTOTAL_CLEAN", "A sign of spam"),
        ("PHISHED_EXCLUDED", "A sign of spam"),
        ("DBL_BLOCKED", "A sign of spam"),  # exceeding the query limit
        ("RBL_SPAMHAUS_BLOCKED_OPENRESOLVER", "A sign of spam"),
        ("FUZZY_CALLBACK", "A sign of spam"),
        ("FORGED_SENDER_MAILLIST", "A sign of spam"),  # a mailing list explains it
        ("CT_SURBL", "A sign of spam"),  # clicktracker
        ("REDIRECTOR_FALSE", "A sign of spam"),  # exclusion for known redirectors
        ("RECEIVED_HELO_LOCALHOST", "A sign of spam"),
        ("RECEIVED_SPAMHAUS_PBL", "directly from a computer"),
        ("URIBL_RED", "a suspicious link"),
        ("PHISHED_WHITELISTED", "A sign of spam"),
    ],
)
def test_symbols_of_rspamd_are_explained_as_rspamd_defines_them(symbol: str, expected: str) -> None:
    assert expected in explain(Symbol(symbol, 1.0))


def test_a_virus_without_a_score_is_a_reason(message: Message) -> None:
    # Its rule forces the action; Rspamd then gives it no score.
    symbols = (Symbol("BAYES_SPAM", 5.0), Symbol("CLAM_VIRUS_FAIL", 0.0), Symbol("CLAM_VIRUS", 0.0))
    assert why(replace(message, symbols=symbols, verdict_tier=Tier.DANGEROUS)) == [
        "A virus scanner found malware",
        "The text resembles known spam",
    ]
    assert explain(symbols[2]) == "A virus scanner found malware"
    for name in ("CLAM_VIRUS_FAIL", "RBL_VIRUSFREE_UNKNOWN", "RBL_VIRUSFREE_BOTNET", "PHISHED_EXCLUDED"):
        assert explain(Symbol(name, 0.0)) == "Information only, no effect on the score"


def test_every_symbol_that_makes_a_message_dangerous_has_words_for_that(message: Message) -> None:
    for pattern in TiersSettings().dangerous_symbols:
        symbols = (Symbol("BAYES_SPAM", 5.0), Symbol(pattern.replace("*", "X"), 0.0))
        assert why(replace(message, symbols=symbols, verdict_tier=Tier.DANGEROUS))[1:] == [
            "The text resembles known spam"
        ]


def test_an_unknown_symbol_is_explained_by_its_weight() -> None:
    reasons = [explain(Symbol("LOCAL_RULE_17", score)) for score in (9.0, 1.0, 0.0, -1.0)]
    assert len(set(reasons)) == 4
    assert explain(Symbol("LOCAL_RULE_17", 4.0)) == reasons[0]
    assert explain(Symbol("LOCAL_RULE_17", 3.99)) == explain(Symbol("LOCAL_RULE_17", 0.01)) == reasons[1]
    assert explain(Symbol("BAYES_SPAM", 0.0)) == reasons[2]  # its own text would say that it counted


def test_one_strong_finding_is_distinguished_from_many_small_ones(message: Message) -> None:
    def reason_of(*scores: float) -> str:
        [only] = why(replace(message, symbols=tuple(Symbol(f"LOCAL_{n}", score) for n, score in enumerate(scores))))
        return only

    strong, many, one = reason_of(9.0), reason_of(3.9, 0.1), reason_of(3.9)
    assert len({strong, many, one}) == 3
    assert reason_of(4.0) == reason_of(0.1, 4.0) == strong
    assert reason_of() == reason_of(-9.0, 1.0) == one
    assert why(replace(message, symbols=(Symbol("R_SPF_FAIL", 0.0),))) == [one]


def test_every_reason_is_translated(message: Message) -> None:
    german = languages.get("de")
    reasons = [explain(Symbol("LOCAL_RULE_17", score)) for score in (9.0, 1.0, 0.0, -1.0)]
    for scores in ((), (9.0,), (1.0, 1.0)):
        symbols = tuple(Symbol(f"LOCAL_{n}", score) for n, score in enumerate(scores))
        for tier in Tier:
            reasons += why(replace(message, symbols=symbols, verdict_tier=tier, flags=frozenset({Flag.SYMBOLS})))
    for header, envelope in (("", ""), ("", None), ("a@x.example <b@y.example>", ""), ("", "x@аррӏе.com")):  # noqa: RUF001
        sender = sender_shown(replace(message, header_from=header, envelope_sender=envelope))
        reasons += [text for text in (sender.warning, sender.instead) if text]
    assert len(set(reasons)) > 10
    assert [text for text in reasons if german.gettext(text) in ("", text)] == []


def test_at_most_three_reasons_are_shown_and_the_missing_report_is_one_of_them(message: Message) -> None:
    names = ("BAYES_SPAM", "FUZZY_DENIED", "SUBJ_ALL_CAPS", "GTUBE")
    symbols = tuple(Symbol(name, score) for name, score in zip(names, (9.0, 8.0, 7.0, 6.0), strict=True))
    reasons = why(replace(message, symbols=symbols))
    assert reasons == [explain(symbol) for symbol in symbols[:3]]
    with_flag = why(replace(message, symbols=symbols, flags=frozenset({Flag.SCORE})))
    assert with_flag[:2] == reasons[:2]
    assert len(with_flag) == 3
    assert with_flag[2] not in reasons


def test_findings_of_one_weight_come_in_the_order_of_their_names(message: Message) -> None:
    symbols = (Symbol("SUBJ_ALL_CAPS", 5.0), Symbol("BAYES_SPAM", 5.0), Symbol("GTUBE", 5.0))
    reasons = [explain(symbol) for symbol in sorted(symbols)]
    assert why(replace(message, symbols=symbols)) == reasons


@pytest.mark.parametrize("name", ["clam_virus", "X_MALWARE", "URLHAUS_X", "PHISHING", "PH_SURBL_MULTI", "oletools"])
def test_a_dangerous_symbol_comes_first_only_in_a_dangerous_mail(message: Message, name: str) -> None:
    symbols = (Symbol("BAYES_SPAM", 9.0), Symbol("GTUBE", 5.0), Symbol(name, 0.1))
    reasons = [explain(symbol) for symbol in symbols]
    assert why(replace(message, symbols=symbols, verdict_tier=Tier.DANGEROUS)) == [reasons[2], reasons[0], reasons[1]]
    assert why(replace(message, symbols=symbols, verdict_tier=Tier.SUSPICIOUS)) == reasons
