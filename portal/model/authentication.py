"""Results of SPF, DKIM and DMARC about a message, by the symbols of Rspamd's modules of these names (3.4 to 4.1).

These are the results as they are; who the sender is, and whether that is proven, is decided in `sender`.
"""

from __future__ import annotations

from portal.model.message import Flag, Message
from portal.model.record import record
from portal.model.text import N_, shown

_PASSED, _FAILED, _NONE = N_("Passed"), N_("Failed"), N_("None")
_ERROR, _UNKNOWN = N_("Could not be checked"), N_("Not checked")
_DOMAINS = 3  # of signatures
_DOMAIN_CHARACTERS = 80
# The first symbol that a message has decides.
_SYMBOLS = {
    "SPF": {
        "R_SPF_ALLOW": _PASSED,
        "R_SPF_FAIL": _FAILED,
        "R_SPF_SOFTFAIL": _FAILED,
        "R_SPF_PLUSALL": _NONE,  # the domain allows every server
        "R_SPF_NEUTRAL": _NONE,
        "R_SPF_NA": _NONE,
        "R_SPF_DNSFAIL": _ERROR,
        "R_SPF_PERMFAIL": _ERROR,
    },
    "DKIM": {
        "R_DKIM_ALLOW": _PASSED,
        "R_DKIM_REJECT": _FAILED,
        "R_DKIM_NA": _NONE,
        "R_DKIM_TEMPFAIL": _ERROR,
        "R_DKIM_PERMFAIL": _ERROR,
    },
    "DMARC": {
        "DMARC_POLICY_ALLOW": _PASSED,
        "DMARC_POLICY_REJECT": _FAILED,
        "DMARC_POLICY_QUARANTINE": _FAILED,
        "DMARC_POLICY_SOFTFAIL": _FAILED,
        "DMARC_NA": _NONE,
        "DMARC_BAD_POLICY": _ERROR,
        "DMARC_DNSFAIL": _ERROR,
    },
}


@record(frozen=True, slots=True)
class Check:
    """The result of one method."""

    method: str
    result: str  # to be translated
    domains: str  # for which it holds, cleaned; "" if they are not known


def checks(message: Message) -> list[Check]:
    """Return the results of SPF, DKIM and DMARC, in this order."""
    options = {symbol.name: symbol.options for symbol in message.symbols}
    found = []
    for method, results in _SYMBOLS.items():
        name = next((name for name in results if name in options), None)
        result = results[name] if name else _UNKNOWN
        is_known = name is not None and Flag.SYMBOLS not in message.flags and result in (_PASSED, _FAILED)
        domains = _domains(method, message, options[name]) if is_known and name else ()
        found.append(Check(method, result, ", ".join(shown(each, _DOMAIN_CHARACTERS) for each in domains if each)))
    return found


def _domains(method: str, message: Message, options: tuple[str, ...]) -> list[str]:
    """Return the domains that a method checked, which Rspamd writes into the options of its symbol.

    SPF is about the envelope sender. The option of DKIM is `DOMAIN:s=SELECTOR`, those of DMARC are the domain, in one
    option with the reason of a failure (`DOMAIN : reason`), and the policy.
    """
    if method == "SPF":
        return [(message.envelope_sender or "").rpartition("@")[2]]
    named = options if method == "DKIM" else options[:1]
    return [*dict.fromkeys(option.partition(":")[0].strip() for option in named)][:_DOMAINS]
