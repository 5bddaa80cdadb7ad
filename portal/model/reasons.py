"""Rspamd's verdict in plain language, for pages and digests.

Depends on the message alone. Texts are marked with `N_` for catalogues; templates translate them with ``_()``.
`text.shown` cleans all text from the message; templates must still escape it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from portal.model.message import Flag, Message, Scan, ScanOutcome, Symbol, Tier
from portal.model.text import N_, shown

REASONS = 3  # in a row
_DESCRIPTION_CHARACTERS = 200


# Rspamd's stock symbols by what they mean to a recipient: conf/scores.d, composites.conf, rules/, plugins/antivirus.lua
# and lualib/lua_scanners of 3.4 and 4.1. A name without `*` wins over all patterns, among which the first match wins;
# `*` as in fnmatch.
_DANGERS: tuple[tuple[str, str], ...] = (  # come first for a dangerous message
    (
        N_("A virus scanner found malware"),
        "*VIRUS* CLAM* METADEFENDER* ESET DRWEB SOPHOS AVAST FPROT SAVAPI KASPERSKY KASPERSKY_SE ICAP *EICAR",
    ),
    (N_("Contains a link to a site that spreads malware"), "URLHAUS* MW_SURBL_MULTI DBL_MALWARE DBL_ABUSE_MALWARE"),
    (
        N_("Contains malware or a link to malware"),
        "*MALWARE* DBL_BOTNET DBL_ABUSE_BOTNET EXPURGATE_DANGEROUS_*",
    ),
    (
        N_("Contains a link to a known phishing site"),
        "PH_SURBL_MULTI DBL_PHISH DBL_ABUSE_PHISH PHISHED_OPENPHISH PHISHED_PHISHTANK PHISHED_GENERIC_SERVICE",
    ),
    (N_("Looks like phishing: tries to get your password or money"), "*PHISH*"),
    (N_("Contains an Office document with a suspicious macro"), "OLETOOLS*"),
)
LIKE_SPAM = N_("The text resembles known spam")
_WORDS: tuple[tuple[str, str], ...] = (
    # A virus scanner's CLAM_VIRUS_ENCRYPTED and CLAM_VIRUS_MACRO are not viruses.
    (N_("Contains an encrypted archive that cannot be scanned"), "MIME_ENCRYPTED_ARCHIVE *_ENCRYPTED"),
    (N_("Contains an Office document with a macro"), "*_MACRO"),
    (N_("Sent from a server known for spam"), "RBL_* *_RBL"),  # before *VIRUS*: virusfree.cz is a blocklist
    *_DANGERS,
    (N_("Contains a link to a hacked site"), "CRACKED_SURBL"),
    (N_("Contains an archive inside another archive"), "MIME_ARCHIVE_IN_ARCHIVE"),
    (
        N_("An attachment is disguised as another file type"),
        "MIME_DOUBLE_BAD_EXTENSION MIME_BAD_UNICODE MIME_BAD_EXT_WITH_BAD_UNICODE MISIDENTIFIED_RAR",
    ),
    (
        N_("An attachment has a dangerous file type"),
        "MIME_BAD_EXTENSION MIME_BAD_ATTACHMENT MIME_BAD EXPURGATE_DANGEROUS_ATTACHMENT",
    ),
    (
        N_("Contains an archive that hides its contents"),
        "MIME_OBFUSCATED_ARCHIVE MIME_BAD_EXT_IN_OBFUSCATED_ARCHIVE UDF_COMPRESSION_*",
    ),
    (
        N_("Contains a program hidden in an archive"),
        "MIME_EXE_IN_GEN_SPLIT_RAR EXE_ARCHIVE_* EXE_IN_* SINGLE_FILE_ARCHIVE_WITH_EXE",
    ),
    (N_("Contains a suspicious PDF document"), "PDF_ENCRYPTED PDF_*"),
    (
        N_("The display name shows a different address than the real sender"),
        "SPOOF_DISPLAY_NAME FROM_NEQ_DISPLAY_NAME DISPLAY_NAME_*",
    ),
    # BLACKLIST_*: not a blocklist of the site. Rspamd's whitelist has the domain, and the message fails the domain's
    # policies (whitelist_group.conf).
    (
        N_("Pretends to be from someone else"),
        "*SPOOF* BLACKLIST_DMARC BLACKLIST_SPF BLACKLIST_SPF_DKIM BLACKLIST_DKIM",
    ),
    (
        N_("Pretends to be from another email provider"),
        "FAKE_RECEIVED_MAIL_RU FAKE_RECEIVED_SMTP_YANDEX_RU FORGED_MSGID_YAHOO REPTO_QUOTE_YAHOO",
    ),
    (N_("The From address differs from the sending address"), "FORGED_SENDER*"),
    (N_("Names more than one sender"), "MULTIPLE_FROM"),
    (
        N_("The sender's name is unusual"),
        "FROM_DN_EQ_ADDR FROM_NAME_EXCESS_SPACE FROM_NAME_HAS_TITLE REPLYTO_EMAIL_HAS_TITLE",
    ),
    (N_("The sender's name contains a link"), "R_HTTP_URL_IN_FROM"),
    (N_("Not addressed to you"), "FORGED_RECIPIENTS* R_UNDISC_RCPT TO_DN_RECIPIENTS"),
    (
        N_("The named email program did not create this message"),
        "FORGED_MUA_* FORGED_OUTLOOK_* FORGED_IMS FORGED_X_MAILER MISSING_MIMEOLE RATWARE_MS_HASH",
    ),
    (
        N_("The delivery path in the headers looks forged"),
        "FORGED_GENERIC_RECEIVED* INVALID_POSTFIX_RECEIVED RCVD_DOUBLE_IP_SPAM R_RCVD_SPAMBOTS",
    ),
    (
        N_("The sender's domain rejects this message as forged (DMARC)"),
        "DMARC_POLICY_REJECT DMARC_POLICY_QUARANTINE",
    ),
    # SOFTFAIL: the message fails DMARC, but the domain's policy is "none".
    (N_("The sender could not be verified"), "DMARC_POLICY_SOFTFAIL AUTH_NA AUTH_NA_OR_FAIL BOUNCE_NO_AUTH"),
    (N_("Sending server not authorized by the sender's domain (SPF)"), "R_SPF_FAIL VIOLATED_DIRECT_SPF"),
    (N_("Sending server probably not authorized by the sender's domain (SPF)"), "R_SPF_SOFTFAIL"),
    (N_("The sender's domain allows every server to send in its name (SPF)"), "R_SPF_PLUSALL"),
    (N_("Invalid signature: the message may have been altered"), "R_DKIM_REJECT ARC_REJECT ARC_INVALID"),
    (
        N_("The sender's domain cannot receive email"),
        "HFILTER_FROMHOST_NORES_A_OR_MX HFILTER_FROMHOST_NOT_FQDN *MX_A_* *MX_BOGON_* *MX_BROKEN *MX_INVALID "
        "*MX_LOCAL_* *MX_MISSING *MX_NONE *MX_NULL *MX_REFUSED *MX_TIMEOUT_*",
    ),
    (N_("The same message was reported as spam elsewhere"), "FUZZY_DENIED RAZOR* PYZOR*"),
    (N_("A very similar message was reported as spam elsewhere"), "*FUZZY*"),
    (N_("The same message was sent to many recipients"), "DCC*"),
    (
        N_("Another spam filter classified this message as suspicious"),
        "SPAM_FLAG KLMS_SPAM MICROSOFT_SPAM UNITEDINTERNET_SPAM VADE_SPAM_* VADE_SUSPECT CLOUDMARK_* GPT_SPAM "
        "EXPURGATE_*",
    ),
    (LIKE_SPAM, "BAYES_SPAM"),
    (N_("The overall pattern resembles known spam"), "NEURAL_SPAM*"),
    # PBL: addresses of home connections, which are not known for spam.
    (
        N_("Sent directly from a computer, not through a mail server"),
        "ONCE_RECEIVED* DIRECT_TO_MX RBL_SPAMHAUS_PBL RECEIVED_SPAMHAUS_PBL RCVD_UNAUTH_PBL",
    ),
    (N_("Contains a link to a site often found in spam"), "URL_REPUTATION_SPAM URIBL_GREY"),
    (N_("Contains a link to a newly registered site"), "SEM_URIBL_FRESH*"),
    (N_("Contains an email address known for spam"), "RSPAMD_EMAILBL MSBL_EBL*"),
    (N_("Passed through a server known for spam"), "RECEIVED_SPAMHAUS* RECEIVED_BLOCKLISTDE"),
    (N_("The sending network has sent a lot of spam"), "IP_SCORE* IP_REPUTATION_SPAM"),
    (N_("The sender has a bad reputation"), "*REPUTATION_SPAM"),
    (N_("The sending server is not set up like a mail server"), "HFILTER_HELO_* HFILTER_HOSTNAME_* RCVD_HELO_USER"),
    (N_("The sending server has no DNS name"), "RDNS_NONE RDNS_DNSFAIL"),
    (N_("Contains a link to an IP address instead of a site name"), "HTTP_TO_IP URL_NUMERIC_IP URL_NUMERIC_IP_USER"),
    (
        N_("Contains a link that hides its destination"),
        "DBL_ABUSE_REDIR R_SUSPICIOUS_URL SUSPICIOUS_URL* REDIRECTOR_URL* URL_REDIRECTOR_* HTML_META_REFRESH_URL "
        "ZERO_WIDTH_SPACE_URL HAS_GOOGLE_REDIR HAS_GUC_PROXY_URI HTTP_TO_HTTPS URL_BACKSLASH_PATH URL_BAD_UNICODE "
        "URL_MULTIPLE_AT_SIGNS URL_OBFUSCATED_TEXT URL_QUERY_MULTIPLE_URLS URL_RTL_OVERRIDE URL_USER_* "
        "URL_ZERO_WIDTH_SPACES",
    ),
    (
        N_("Contains a suspicious link"),
        "HAS_FILE_URL HAS_GOOGLE_FIREBASE_URL HAS_IPFS_GATEWAY_URL URI_HIDDEN_PATH URL_EXCESSIVE_DOTS URL_NO_TLD "
        "URL_SUSPICIOUS_TLD URL_VERY_LONG URIBL_PBL URIBL_RED",
    ),
    (N_("Contains a link to a known spam site"), "DBL_* URIBL_* *_URIBL* ABUSE_SURBL *_SURBL_MULTI"),
    (N_("Contains a link and hardly any text"), "HFILTER_URL_ONLY HFILTER_URL_ONELINE"),
    (N_("Contains invisible text"), "ZERO_*FONT* R_WHITE_ON_WHITE MANY_INVISIBLE_PARTS"),
    (N_("Mixes look-alike letters from different alphabets"), "R_MIXED_CHARSET* OMOGRAPH_URL URL_HOMOGRAPH_ATTACK"),
    (N_("Mostly images, hardly any text"), "R_SUSPICIOUS_IMAGES R_EMPTY_IMAGE HTML_SHORT_LINK_IMG*"),
    (N_("The message is empty"), "COMPLETELY_EMPTY EXPURGATE_CLEAN_EMPTY"),
    (N_("Tries to hide its text from spam filters"), "DATA_URI_OBFU MIME_BASE64_TEXT_BOGUS TRACKER_ID"),
    (N_("Loads formatting from another site"), "EXT_CSS"),
    (N_("The plain text differs from the formatted text"), "R_PARTS_DIFFER URI_COUNT_ODD"),
    (N_("The subject is all capitals"), "SUBJ_ALL_CAPS"),
    (N_("The subject is unusually long"), "LONG_SUBJ"),
    (N_("Pretends to be a reply"), "FAKE_REPLY"),
    (N_("Contains threats and demands money"), "LEAKED_PASSWORD_SCAM*"),
    (N_("Looks like a scam"), "*SCAM*"),
    (N_("Asks for a payment in cryptocurrency"), "*BITCOIN*"),
    (N_("Promises money in return for an advance payment"), "ADVANCE_FEE* FREEMAIL_AFF"),
    (N_("The sender introduces themselves, as in many scams"), "INTRODUCTION"),
    (N_("Replies go to a different address at a free email provider"), "FREEMAIL_REPLYTO_NEQ_FROM*"),
    (N_("Replies go to a different address"), "REPLYTO_DOM_NEQ_FROM_DOM"),
    (N_("Replies go back to the recipient"), "REPLYTO_EQ_TO_ADDR"),
    (
        N_("Read receipts go to a different address"),
        "HEADER_FORGED_MDN HEADER_RCONFIRM_MISMATCH SUSPICIOUS_MDN",
    ),
    (N_("The date of the message is wrong"), "DATE_IN_FUTURE DATE_IN_PAST INVALID_DATE"),
    (N_("The list of recipients looks computer-generated"), "SORTED_RECIPS SUSPICIOUS_RECIPS"),
    (N_("Sent with software often used for spam"), "STRONGMAIL"),
    (
        N_("Probably sent through a hacked website or account"),
        "ABUSE_FROM_INJECTOR COMPROMISED_ACCT_BULK HIDDEN_SOURCE_OBJ X_PHP_EVAL X_PHP_FORGED_0X X_PHPOS_FAKE",
    ),
    (
        N_("Sent by a program on a web server"),
        "AUTOGEN_PHP_SPAMMY ENVFROM_SERVICE_ACCT FROM_SERVICE_ACCT MID_RHS_WWW PHP_SCRIPT_ROOT WWW_DOT_DOMAIN "
        "XAW_SERVICE_ACCT",
    ),
    (
        N_("The headers are unlike those of normal email programs"),
        "*_EXCESS_BASE64 *_EXCESS_QP CD_MM_BODY CTE_CASE CT_EXTRA_SEMI MID_* MV_CASE OLD_X_MAILER R_NO_SPACE_IN_FROM "
        "STOX_REPLY_TYPE SUSPICIOUS_BOUNDARY* TO_WRAPPED_IN_SPACES XM_CASE",
    ),
    (
        N_("Required headers are missing"),
        "EMPTY_SUBJECT GOOGLE_FORWARDING_MID_MISSING MIME_HEADER_CTYPE_ONLY SHORT_PART_BAD_HEADERS MISSING_*",
    ),
    (
        N_("Does not follow email standards"),
        "*_EMPTY_DELIMITER *_NEEDS_ENCODING BOGUS_* BROKEN_* CTYPE_* ENVFROM_INVALID FROM_INVALID "
        "GOOGLE_FORWARDING_MID_BROKEN HFILTER_MID_* HFILTER_RCPT_* INVALID_* MIME_MA_MISSING_HTML "
        "MIME_MA_MISSING_TEXT MULTIPLE_* RCVD_ILLEGAL_CHARS REPLYTO_DOMAIN_LONG REPLYTO_INVALID "
        "REPLYTO_LOCALPART_LONG REPLYTO_UNPARSEABLE R_BAD_CTE_7BIT R_MISSING_CHARSET",
    ),
    (N_("The subject looks like spam"), "SUBJECT_* SUBJ_* URL_IN_SUBJECT"),
    (N_("Test message for spam filters"), "GTUBE"),
    (N_("The sender is on your mail server's blocklist"), "*BLACKLIST* *BLOCKLIST* *MX_BAD *MX_IP_BAD"),
    (N_("Bulk email"), "BULK* UNDISC_RCPTS_BULK HAS_INTERSPIRE_SIG INFO_TO_INFO_LU"),
    (N_("First message from this sender"), "GREYLIST"),
)
# Without such a symbol, or besides.
_CLASSIFIED_DANGEROUS = N_("Classified as dangerous")
_STRONG_SIGN = N_("A strong sign of spam")
_SEVERAL_SIGNS = N_("Several signs of spam")
_CLASSIFIED_SPAM = N_("Classified as spam")
_UNCHECKED = N_("Some checks may have been skipped")
_INCOMPLETE = N_("The spam filter's report is incomplete")
SCANS_IN_WORDS = {
    ScanOutcome.WAITING: N_("Not scanned for viruses yet"),
    ScanOutcome.CLEAN: N_("No virus found"),
    ScanOutcome.FOUND: N_("Threat found"),
    ScanOutcome.FAILED: N_("The virus scan could not be completed"),
}
ALL_REASONS = frozenset(  # that `why` returns
    [
        *(words for words, _ in _WORDS),
        *(_CLASSIFIED_DANGEROUS, _STRONG_SIGN, _SEVERAL_SIGNS, _CLASSIFIED_SPAM, _UNCHECKED, _INCOMPLETE),
        *(words for outcome, words in SCANS_IN_WORDS.items() if not Scan(outcome).is_done),
    ]
)
_BY_PATTERN = tuple((pattern, words) for words, patterns in _WORDS for pattern in patterns.split())
_BY_NAME = {name: words for name, words in _BY_PATTERN if "*" not in name}
_DANGEROUS = frozenset(words for words, _ in _DANGERS)
# Endings of names that say that nothing was found: CLAM_VIRUS_FAIL, VIRUSTOTAL_CLEAN, PHISHED_EXCLUDED, DBL_BLOCKED
# (the blocklist does not answer), FORGED_SENDER_MAILLIST (a mailing list explains it).
_NOTHING_FOUND = (
    "_FAIL", "_CLEAN", "_EXCLUDED", "_WHITELISTED", "_BLOCKED", "_OPENRESOLVER", "_PROHIBIT", "_CALLBACK", "_CHECK",
    "_MAILLIST", "_FORWARDING", "_VERP_SRS", "_ALLOWED",
)  # fmt: skip


@lru_cache(maxsize=4096)  # a site has some hundred symbols; row of the bench: "a digest without cached reasons"
def _text_of(name: str) -> str | None:
    upper = name.upper()
    if upper in _BY_NAME:
        return _BY_NAME[upper]
    if upper.endswith(_NOTHING_FOUND):
        return None
    return next((words for pattern, words in _BY_PATTERN if fnmatchcase(upper, pattern)), None)


def _against(symbol: Symbol) -> str | None:
    """Return the words of a symbol that counts against the message, None if it does not or has no words.

    A virus scanner's symbol counts without a score: its rule forces the action (see `model.tiers`).
    """
    words = _text_of(symbol.name)
    return words if symbol.score > 0 or (symbol.score == 0 and words in _DANGEROUS) else None


def explain(symbol: Symbol) -> str:
    """Return one symbol as a text; for an unknown symbol, a text about its score."""
    if symbol.score < 0:
        return N_("A sign that the message is legitimate")
    words = _against(symbol)
    if words is not None:
        return words
    if symbol.score >= 4:
        return _STRONG_SIGN
    if symbol.score > 0:
        return N_("A sign of spam")
    return N_("Information only, no effect on the score")


def description(symbol: Symbol) -> str:
    """Return Rspamd's own description of a symbol that `explain` has no words for, in English, "" if unknown."""
    return "" if _against(symbol) else shown(symbol.description, _DESCRIPTION_CHARACTERS)


def why(message: Message) -> list[str]:
    """Return the main reasons why a message was held, one to three."""
    symbols = sorted(message.symbols, key=lambda s: (-s.score, s.name))
    reasons = [words for words in map(_against, symbols) if words]
    if message.tier is Tier.DANGEROUS:
        # Dangerous content comes first, regardless of its score.
        reasons.sort(key=lambda words: words not in _DANGEROUS)
    found = list(dict.fromkeys(reasons))[:REASONS]
    if not found:
        found = [_by_score(message, [s for s in symbols if s.score > 0])]
    if message.flags:
        unchecked = message.flags == {Flag.FORCED}
        found = [*found[: REASONS - 1], _UNCHECKED if unchecked else _INCOMPLETE]
    if message.scan is not None and not message.scan.is_done:
        found = [*found[: REASONS - 1], SCANS_IN_WORDS[message.scan.outcome]]
    return found


def has_attachment(message: Message) -> bool:
    """Return whether Rspamd found an attachment (rules/misc.lua); False if its symbols are not known."""
    return any(symbol.name == "HAS_ATTACHMENT" for symbol in message.symbols)


def _by_score(message: Message, against: list[Symbol]) -> str:
    if message.tier is Tier.DANGEROUS:
        return _CLASSIFIED_DANGEROUS
    if against and against[0].score >= 4:
        return _STRONG_SIGN
    return _SEVERAL_SIGNS if len(against) > 1 else _CLASSIFIED_SPAM
