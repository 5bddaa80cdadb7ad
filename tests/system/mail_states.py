"""States of mails."""

from __future__ import annotations

from dataclasses import replace

from digest import news
from digest.housekeeping import send_queued
from digest.notices import send_notices
from portal.model.links import Action
from portal.model.message import Tier
from tests.builders import ALICE, prefer
from tests.system.link_states import request_link
from tests.system.local_site import read_mail
from tests.system.samples import PROVEN, WANTED
from tests.system.stage import Stage, State


def _full_digest(stage: Stage) -> None:
    for number in range(60):
        tier = Tier.DANGEROUS if number % 12 == 0 else Tier.SUSPICIOUS if number % 10 == 0 else Tier.SPAM
        stage.new(tier, subject=f"Special price {number}", header_from=f"Shop {number} <news@shop{number}.example>")
    for number in range(3):  # otherwise the digest is short
        sender = f"Supplier {number} <orders@supplier{number}.example>"
        stage.new(subject=f"Delivery note {number}", header_from=sender, symbols=PROVEN, score=15.4)
    read_mail(stage.page, stage.site.digest())


def _role_digest(stage: Stage) -> None:
    read_mail(stage.page, stage.company.digest())


def _notice(stage: Stage) -> None:
    site, store = stage.site, stage.site.store
    zone = f"Etc/GMT{site.now.hour - 12:+}"  # it is noon there: no notice is sent at night
    prefer(store, ALICE, replace(store.recipients.get(ALICE).preferences, timezone=zone, notices=True))
    news.schedule_news(site.parts, site.now)
    subject, sender = WANTED[stage.language][0]
    site.hold(recipients=[ALICE], subject=subject, header_from=sender, symbols=PROVEN, score=15.4)
    assert send_notices(site.parts, site.now).sent
    read_mail(stage.page, site.last_mail())


def _sign_in_mail(stage: Stage) -> None:
    stage.page.context.clear_cookies()
    request_link(stage)
    send_queued(stage.site.parts, stage.site.now)
    read_mail(stage.page, stage.site.last_mail())


def _stopped_mail(stage: Stage) -> None:
    url = stage.digest_link(Action.PREFERENCES).url
    assert stage.page.request.post(url, form={"List-Unsubscribe": "One-Click"}).ok
    send_queued(stage.site.parts, stage.site.now)
    read_mail(stage.page, stage.site.last_mail())
    stage.site.store.recipients.set_digests_stopped(ALICE, None)


MAILS = [
    State("notice", "The notice of a message that is probably wanted", "", _notice),
    State("digest-full", "A digest with as many rows as fit, and dangerous messages", "", _full_digest),
    State("digest-role", "The digest of somebody who reads a role mailbox, too", "", _role_digest),
    State("mail-sign-in", "The mail with a sign-in link", "", _sign_in_mail),
    State("mail-stopped", "The answer to an unsubscription", "", _stopped_mail),
]
