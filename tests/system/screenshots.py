"""Make docs/pictures.md and docs/images: the digest and the pages in Debian's Chromium, with hostile mail.

    python -m tests.system.screenshots [FOLDER]

Needs `tests/system/install-packages` and, for all scripts and small files, `apt-get install fonts-noto-core
fonts-noto-cjk fonts-noto-color-emoji pngquant`. They show a mail as a mail server got it and pages as the
portal serves them; nothing is drawn for the picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from portal.model.message import Symbol
from tests.builders import ALICE
from tests.system import gallery
from tests.system.conftest import CHROMIUM
from tests.system.local_site import part, read_mail, sign_in
from tests.system.mail_programs import show_in_word, show_without_sheets
from tests.system.samples import hold_samples
from tests.system.stage import site_in, stage_in

ROOT = Path(__file__).resolve().parents[2]
SMALL, PHONE, DESKTOP = 320, 390, 1000  # pixels wide
# Pictures of the digest by language: names, widths, colour schemes.
DIGESTS = {
    "en": [
        ("320", SMALL, "light"),
        ("390", PHONE, "light"),
        ("390-dark", PHONE, "dark"),
        ("desktop", DESKTOP, "light"),
        ("desktop-dark", DESKTOP, "dark"),
    ],
    "ja": [("320", SMALL, "light"), ("390-dark", PHONE, "dark"), ("desktop", DESKTOP, "light")],
    "ar": [("320", SMALL, "light"), ("390-dark", PHONE, "dark"), ("desktop", DESKTOP, "light")],
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        for language, pictures in DIGESTS.items():
            with site_in(language, public_url="https://quarantine.example.org/quarantine") as site:
                hold_samples(site, language)
                mail = site.digest()
                for name, width, scheme in pictures:
                    with page_of(browser, width, scheme) as page:
                        read_mail(page, mail)
                        save(page, folder / f"digest-{language}-{name}.png")
                if language == "en":
                    take_few_styles(browser, mail, folder)
        take_tutorial(browser, folder)
        with tempfile.TemporaryDirectory() as parts:
            for language in gallery.LANGUAGES:
                with stage_in(language, browser) as stage:
                    gallery.take(stage, language, Path(parts))
            gallery.make_sheets(browser, Path(parts), folder)
        browser.close()
    if folder == ROOT / "docs/images":
        gallery.describe(ROOT / "docs/pictures.md")


def take_few_styles(browser: Browser, mail: EmailMessage, folder: Path) -> None:
    """Take the digest in mail programs that know few styles."""
    for name, show, width in (("word", show_in_word, DESKTOP), ("no-sheets", show_without_sheets, PHONE)):
        with page_of(browser, width, "light") as page:
            show(page, part(mail, "html"))
            save(page, folder / f"digest-en-{name}.png")


def take_tutorial(browser: Browser, folder: Path) -> None:
    """Take the pictures of docs/tutorial.md, of the message there, and those of README.md."""
    with site_in("en", mail__admin_address="postmaster@example.org") as site:
        sender, subject = "orders@shoes.example.net", "Your order 4711 has been shipped"
        site.hold(
            recipients=(ALICE,),
            header_from=f"Shoe Shop <{sender}>",
            envelope_sender=sender,
            subject=subject,
            score=15.4,
            symbols=(Symbol("BAYES_SPAM", 5.1),),
        )
        with page_of(browser, 640, "light") as page:
            read_mail(page, mail := site.digest())
            save(page, folder / "tutorial-digest.png")
        with page_of(browser, PHONE, "light") as page:
            read_mail(page, mail)
            page.set_viewport_size({"width": PHONE, "height": 500})
            page.get_by_role("link", name="Release").first.click()
            save(page, folder / "tutorial-release.png")
            page.get_by_role("button", name="Release to inbox").click()
            save(page, folder / "tutorial-released.png")
    with (
        site_in("en", mail__admin_address="postmaster@example.org") as site,
        page_of(browser, DESKTOP, "light") as page,
    ):
        hold_samples(site, "en")
        read_mail(page, site.digest())
        save(page, folder / "readme-digest.png", highest=900)
        sign_in(site, page.context)
        page.goto(site.parts.settings.public_url)
        save(page, folder / "readme-list.png")


@contextmanager
def page_of(browser: Browser, width: int, scheme: Any) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": width, "height": 600}, color_scheme=scheme, java_script_enabled=False
    )
    yield context.new_page()
    context.close()


def save(page: Page, path: Path, highest: float = 10_000) -> None:
    """Save a picture of the whole page, or of its first pixels, with few colours, so that the file is small."""
    box = page.locator("html").bounding_box()
    assert box is not None
    # As high as the page, or elements at the window's lower edge would appear in the middle of the page.
    page.set_viewport_size({"width": int(box["width"]), "height": int(box["height"]) + 1})
    page.screenshot(path=path, clip={**box, "height": min(box["height"], highest)})
    subprocess.run(["pngquant", "--force", "--ext", ".png", "--speed", "1", "48", path], check=True)
    print(f"{path}  {path.stat().st_size:,} octets")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "docs/images")
