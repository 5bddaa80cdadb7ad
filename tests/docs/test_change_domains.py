"""docs/change-domains.md: its commands run in order and print what the page says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from portal.stores import open_store
from tests import builders
from tests.docs.pages import Shell, agrees, parts_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]  # many starts of Python

SETTINGS = """
public_url = "https://quarantine.example.org/quarantine"
local_domains = ["example.org", "old.example", "new.example", "left.example"]
store.url = "{url}"
people.alias_file = "{folder}/virtual"
mail.from_address = "quarantine@example.org"
mail.admin_address = "postmaster@example.org"
"""
BEFORE = """
quarantine rules add allow news@shop.example --recipient alice@old.example
quarantine rules add block bad.example --domain old.example
quarantine rules add block bad.example --domain left.example
quarantine domains set left.example language fr
quarantine digests stop bob@old.example
quarantine digests set alice@old.example --days weekdays
quarantine staff add alice@old.example auditor
"""


def test_a_domain_is_renamed_and_a_company_leaves(tmp_path: Path, files_url: str) -> None:
    # The file store alone: tests of each command use both stores.
    (tmp_path / "virtual").touch()
    (tmp_path / "quarantine.toml").write_text(SETTINGS.format(url=files_url, folder=tmp_path))
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with Shell(tmp_path, environment) as shell:
        shell.run("quarantine init")
        store = open_store(files_url)
        for name in ("alice@old", "alice@old", "bob@old", "carol@left"):
            builders.hold(store, recipients=(f"{name}.example",))
        builders.hold(store, recipients=("carol@left.example", "dave@left.example", "erin@example.org"))
        store.close()
        printed = shell.run(BEFORE)
        for kind, text in parts_of("change-domains.md"):
            if kind == "sh":
                printed = shell.run(text)
            elif kind == "text":
                assert agrees(printed, text), f"printed:\n{printed}\nbut the page says:\n{text}"
        assert "erin@example.org" in shell.run("quarantine list --domain example.org")
