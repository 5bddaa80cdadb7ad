"""Held mail as in practice: a few false positives, much spam, and mail that tries to deceive its reader."""

from __future__ import annotations

from typing import Any

from portal.model.message import Symbol, Tier
from portal.stores.records import Held
from tests.builders import ALICE, mail
from tests.web_client import Site

PROVEN = (Symbol("DMARC_POLICY_ALLOW", -0.5), Symbol("R_DKIM_ALLOW", -0.2))
_SPAM = (Symbol("BAYES_SPAM", 5.1), Symbol("DBL_SPAM", 6.5), Symbol("RDNS_NONE", 2.0))

# subject, From, score, symbols, tier
WANTED: dict[str, list[tuple[str, str]]] = {
    "en": [
        ("Your order 4711 has been shipped", "Kontor Nord <orders@kontor-nord.example>"),
        ("Re: Minutes of Thursday's meeting", "Jane Doe <jane.doe@partner.example>"),
    ],
    "ja": [
        ("ご注文の商品を発送しました（注文番号 4711）", "北商店 <orders@kita-shoten.example>"),
        ("Re: 木曜日の会議の議事録について", "山田 花子 <hanako.yamada@partner.example>"),
    ],
    "ar": [
        ("تم شحن طلبك رقم 4711", "متجر الشمال <orders@shamal.example>"),
        ("رد: محضر اجتماع يوم الخميس", "ليلى حداد <layla.haddad@partner.example>"),
    ],
}
HOSTILE: list[tuple[str, str, float, tuple[Symbol, ...], Tier]] = [
    (
        "Lose 20 kg in 3 days!!! 💊💊 www.pills.example/now?id=77",
        "Dr. Health <promo@pills.example>",
        31.7,
        _SPAM,
        Tier.SPAM,
    ),
    (
        '</td></table><script>alert("released")</script><a href="https://evil.example/">Release</a>',
        '"alice@example.org" <x@evil.example>',
        24.0,
        (Symbol("SPOOF_DISPLAY_NAME", 8.0), *_SPAM),
        Tier.SPAM,
    ),
    (
        "\u202eelif.exe\u202c Rechnung\u200b 2026-0815 \u2066überfällig – " + "sofort zahlen " * 12,
        "Buchhaltung <rechnung@xn--80ak6aa92e.com>",
        19.5,
        (Symbol("MIME_BAD_EXTENSION", 4.0), Symbol("BAYES_SPAM", 5.1)),
        Tier.SUSPICIOUS,
    ),
    (
        "恭喜您中奖了！请立即点击领取" + "￥" * 6,
        "抽奖中心 <lottery@" + "very-long-domain-name-" * 2 + "cn.example>",
        27.2,
        _SPAM,
        Tier.SPAM,
    ),
    ("", "", 18.0, (Symbol("MISSING_SUBJECT", 2.0), Symbol("BAYES_SPAM", 5.1)), Tier.SPAM),
    (
        "Your account will be closed",
        '"Your Bank security@bank.example" <x8812@mailer.example>',
        42.0,
        (Symbol("PHISHED_OPENPHISH", 7.0), Symbol("DMARC_POLICY_REJECT", 2.0)),
        Tier.DANGEROUS,
    ),
]


def hold_samples(site: Site, language: str = "en", recipient: str = ALICE) -> list[Held]:
    """Hold two false positives in a language, hostile mail, and a mailing that came three times."""

    def hold(subject: str, header_from: str, score: float, symbols: tuple[Symbol, ...], tier: Tier) -> Held:
        more: dict[str, Any] = {"subject": subject, "header_from": header_from, "score": score, "symbols": symbols}
        text = f"From: {header_from}\r\nSubject: {subject}\r\n".replace("\u202e", "").encode() + mail()
        return site.hold(tier, data=text, recipients=(recipient,), envelope_sender="bounce@sender.example", **more)

    shop, jane = WANTED[language]
    news = "Weekly offers, issue {}", "Offers Weekly <news@offers.example>", 22.1, _SPAM, Tier.SPAM
    return [
        *(hold(news[0].format(n), *news[1:]) for n in (45, 46, 47)),
        *(hold(*one) for one in HOSTILE),
        hold(*jane, 16.8, (*PROVEN, Symbol("BAYES_SPAM", 5.1)), Tier.SPAM),
        hold(*shop, 15.4, (*PROVEN, Symbol("HTML_SHORT_LINK_IMG_1", 2.0), Symbol("BAYES_SPAM", 5.1)), Tier.SPAM),
    ]


def hold_everyday_mail(site: Site, recipient: str = ALICE) -> None:
    """Hold sixty messages without attempts to deceive: five that are likely mistakes, and newsletters and spam."""
    wanted = [
        ("Re: Minutes of Thursday's meeting", "Jane Doe <jane.doe@partner.example>"),
        ("Your order 4711 has been shipped", "Kontor Nord <orders@kontor-nord.example>"),
        ("Rechnung 2026-0815 zu Ihrem Auftrag 99812", "Huber Buchhaltung <buchhaltung@huber.example>"),
        ("Ihr Einmalcode: 448 912", "Bank of Example <no-reply@bank.example>"),
        ("Invitation: planning of the next quarter", "Ann Example <ann@partner.example>"),
    ]
    for number, (subject, header_from) in enumerate(wanted):
        symbols = (*PROVEN, Symbol("BAYES_SPAM", 5.1), *([Symbol("HTML_SHORT_LINK_IMG_1", 2.0)] * (number % 2)))
        site.hold(recipients=(recipient,), subject=subject, header_from=header_from, score=15.1, symbols=symbols)
    signs = [
        _SPAM,
        (Symbol("FUZZY_DENIED", 12.0), Symbol("RBL_SPAMHAUS_SBL", 4.0)),
        (Symbol("HTML_SHORT_LINK_IMG_1", 2.0), Symbol("BAYES_SPAM", 5.1)),
    ]
    names = ("Wein", "Shoes", "Garden", "Travel", "Books", "Photo", "Bikes", "Toys", "Tea", "Maps", "Music")
    for number in range(55):
        name, word = names[number % 11], ("up to 60% off", "last chance", "new", "only today", "free")[number // 11]
        site.hold(
            recipients=(recipient,),
            subject=f"{name} weekly: {word}",
            header_from=f"{name} Weekly <news@{name.lower()}.example>",
            score=17.0 + number / 3,
            symbols=signs[number % 3],
        )
