"""Reasons in at most three words, for the rows of digests and lists.

The page of a message shows the sentences of `reasons`.

Texts are marked with `N_` for catalogues.
"""

from __future__ import annotations

from portal.model.text import N_

_REASONS_OF: tuple[tuple[str, tuple[str, ...]], ...] = (
    (N_("malware found"), ("A virus scanner found malware",)),
    (N_("malware link"), ("Contains a link to a site that spreads malware",)),
    (N_("malware"), ("Contains malware or a link to malware",)),
    (N_("phishing link"), ("Contains a link to a known phishing site",)),
    (N_("looks like phishing"), ("Looks like phishing: tries to get your password or money",)),
    (N_("suspicious macro"), ("Contains an Office document with a suspicious macro",)),
    (
        N_("resembles spam"),
        (
            "The text resembles known spam",
            "The overall pattern resembles known spam",
        ),
    ),
    (N_("encrypted archive"), ("Contains an encrypted archive that cannot be scanned",)),
    (N_("document with macro"), ("Contains an Office document with a macro",)),
    (
        N_("known spam server"),
        (
            "Sent from a server known for spam",
            "Passed through a server known for spam",
        ),
    ),
    (N_("hacked site link"), ("Contains a link to a hacked site",)),
    (
        N_("suspicious archive"),
        (
            "Contains an archive inside another archive",
            "Contains an archive that hides its contents",
        ),
    ),
    (N_("disguised attachment"), ("An attachment is disguised as another file type",)),
    (N_("dangerous attachment"), ("An attachment has a dangerous file type",)),
    (N_("hidden program"), ("Contains a program hidden in an archive",)),
    (N_("suspicious PDF"), ("Contains a suspicious PDF document",)),
    (
        N_("misleading sender name"),
        (
            "The display name shows a different address than the real sender",
            "The sender's name is unusual",
            "The sender's name contains a link",
        ),
    ),
    (
        N_("forged sender"),
        (
            "Pretends to be from someone else",
            "Pretends to be from another email provider",
            "The sender's domain rejects this message as forged (DMARC)",
        ),
    ),
    (N_("different sending address"), ("The From address differs from the sending address",)),
    (N_("several senders"), ("Names more than one sender",)),
    (N_("not to you"), ("Not addressed to you",)),
    (
        N_("forged headers"),
        (
            "The named email program did not create this message",
            "The delivery path in the headers looks forged",
        ),
    ),
    (
        N_("unverified sender"),
        (
            "The sender could not be verified",
            "The sender's domain allows every server to send in its name (SPF)",
        ),
    ),
    (
        N_("unauthorized server"),
        (
            "Sending server not authorized by the sender's domain (SPF)",
            "Sending server probably not authorized by the sender's domain (SPF)",
        ),
    ),
    (N_("invalid signature"), ("Invalid signature: the message may have been altered",)),
    (N_("unreachable sender"), ("The sender's domain cannot receive email",)),
    (
        N_("reported as spam"),
        (
            "The same message was reported as spam elsewhere",
            "A very similar message was reported as spam elsewhere",
        ),
    ),
    (
        N_("bulk mail"),
        (
            "The same message was sent to many recipients",
            "The list of recipients looks computer-generated",
            "Bulk email",
        ),
    ),
    (N_("suspicious elsewhere"), ("Another spam filter classified this message as suspicious",)),
    (N_("no mail server"), ("Sent directly from a computer, not through a mail server",)),
    (
        N_("spam link"),
        (
            "Contains a link to a site often found in spam",
            "Contains a link to a known spam site",
        ),
    ),
    (N_("new site link"), ("Contains a link to a newly registered site",)),
    (N_("known spam address"), ("Contains an email address known for spam",)),
    (
        N_("bad reputation"),
        (
            "The sending network has sent a lot of spam",
            "The sender has a bad reputation",
        ),
    ),
    (
        N_("misconfigured server"),
        (
            "The sending server is not set up like a mail server",
            "The sending server has no DNS name",
        ),
    ),
    (
        N_("suspicious link"),
        (
            "Contains a link to an IP address instead of a site name",
            "Contains a link that hides its destination",
            "Contains a suspicious link",
        ),
    ),
    (N_("only a link"), ("Contains a link and hardly any text",)),
    (
        N_("hidden text"),
        (
            "Contains invisible text",
            "Tries to hide its text from spam filters",
        ),
    ),
    (N_("look-alike letters"), ("Mixes look-alike letters from different alphabets",)),
    (N_("mostly images"), ("Mostly images, hardly any text",)),
    (N_("empty message"), ("The message is empty",)),
    (
        N_("unusual formatting"),
        (
            "Loads formatting from another site",
            "The plain text differs from the formatted text",
        ),
    ),
    (
        N_("suspicious subject"),
        (
            "The subject is all capitals",
            "The subject is unusually long",
            "The subject looks like spam",
        ),
    ),
    (N_("fake reply"), ("Pretends to be a reply",)),
    (N_("extortion"), ("Contains threats and demands money",)),
    (
        N_("looks like scam"),
        (
            "Looks like a scam",
            "Asks for a payment in cryptocurrency",
            "Promises money in return for an advance payment",
            "The sender introduces themselves, as in many scams",
        ),
    ),
    (
        N_("different reply address"),
        (
            "Replies go to a different address at a free email provider",
            "Replies go to a different address",
            "Replies go back to the recipient",
            "Read receipts go to a different address",
        ),
    ),
    (N_("wrong date"), ("The date of the message is wrong",)),
    (N_("spam software"), ("Sent with software often used for spam",)),
    (N_("hacked account"), ("Probably sent through a hacked website or account",)),
    (N_("sent by program"), ("Sent by a program on a web server",)),
    (
        N_("unusual headers"),
        (
            "The headers are unlike those of normal email programs",
            "Required headers are missing",
            "Does not follow email standards",
        ),
    ),
    (N_("test message"), ("Test message for spam filters",)),
    (N_("blocklisted sender"), ("The sender is on your mail server's blocklist",)),
    (N_("first message"), ("First message from this sender",)),
    (
        N_("signs of spam"),
        (
            "A strong sign of spam",
            "A sign of spam",
            "Several signs of spam",
            "Classified as spam",
        ),
    ),
    (N_("classified as dangerous"), ("Classified as dangerous",)),
    (
        N_("incomplete check"),
        (
            "Some checks may have been skipped",
            "The spam filter's report is incomplete",
        ),
    ),
    (
        N_("no virus scan"),
        (
            "Not scanned for viruses yet",
            "The virus scan could not be completed",
        ),
    ),
    (N_("threat found"), ("Threat found",)),
)
_SHORT = {reason: short for short, reasons in _REASONS_OF for reason in reasons}


def shortly(reason: str) -> str:
    """Return a reason of `reasons.why` in few words, to be translated; the reason itself if it has no short form."""
    return _SHORT.get(reason, reason)
