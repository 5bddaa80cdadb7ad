"""`tools.version`: the version changes with the product, in any clone and in a folder without Git."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from tools.version import PRODUCT, ROOT, VersionError, check, product_files, release, sections_of, version_of

TempFolders = pytest.TempPathFactory
TODAY = date(2026, 12, 1)
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
[project]
dependencies = ["bottle"]
[project.optional-dependencies]
dev = ["pytest"]
[tool.hatch.build.targets.wheel]
packages = ["portal"]
[tool.ruff]
line-length = 120
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project like this one before the release of 0.3.0, without Git."""
    files = {
        "portal/__init__.py": '"""Portal."""\n\n__version__ = "0.3.0.dev0"\n',
        "portal/web/pages.py": "PAGE = 1\n",
        "digest/run.py": "RUN = 1\n",
        "templates/mail/body.txt": "Hello\n",
        "deploy/nginx/quarantine.conf": "listen 80;\n",
        **dict.fromkeys(("quarantine.sql", "uwsgi.ini", "quarantine.example.toml"), "one\n"),
        "pyproject.toml": PYPROJECT,
        "CHANGELOG.md": "# Changelog\n\n## [0.3.0] - unreleased\n\n- New.\n\n## [0.2.0] - 2026-11-27\n\n- Old.\n",
        "tools/version.py": "",
        "docs/flow.md": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


@pytest.fixture
def released(project: Path) -> Path:
    """The same project after the release."""
    release(project, TODAY)
    return project


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text("utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new, 1), "utf-8")


def problem(root: Path) -> str:
    with pytest.raises(VersionError) as caught:
        check(root)
    return str(caught.value)


def test_before_a_release_anything_may_change(project: Path) -> None:
    assert check(project) == "0.3.0.dev0 is not released yet; `make release` does that"
    edit(project, "portal/web/pages.py", "1", "2")
    check(project)


def test_a_release_has_a_date_a_final_version_and_its_files(released: Path) -> None:
    assert check(released) == "0.3.0 is released, and no file of the product changed since"
    assert version_of((released / "portal/__init__.py").read_text("utf-8")) == "0.3.0"
    assert "## [0.3.0] - 2026-12-01\n" in (released / "CHANGELOG.md").read_text("utf-8")
    assert (released / "tools/released.sha256").read_text("utf-8").startswith("# 0.3.0\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: edit(root, "portal/web/pages.py", "1", "2"),
        lambda root: edit(root, "digest/run.py", "1", "2"),
        lambda root: edit(root, "templates/mail/body.txt", "Hello", "Hi"),
        lambda root: edit(root, "deploy/nginx/quarantine.conf", "80", "81"),
        lambda root: edit(root, "quarantine.sql", "one", "two"),
        lambda root: edit(root, "uwsgi.ini", "one", "two"),
        lambda root: edit(root, "pyproject.toml", "bottle", "bottle>=1"),
        lambda root: edit(root, "pyproject.toml", 'packages = ["portal"]', 'packages = ["portal", "digest"]'),
        lambda root: edit(root, "portal/__init__.py", "Portal", "The portal"),
        lambda root: (root / "portal/new.py").touch(),
        lambda root: (root / "portal/web/pages.py").unlink(),
    ],
)
def test_after_a_release_a_change_of_the_product_needs_a_new_version(
    released: Path, change: Callable[[Path], object]
) -> None:
    change(released)
    message = problem(released)
    assert "changed after 0.3.0 was released" in message
    assert 'set __version__ in portal/__init__.py to "0.3.1.dev0" (or higher)' in message
    assert 'begin CHANGELOG.md with a section "## [0.3.1] - unreleased"' in message

    # The message describes what helps.
    edit(released, "portal/__init__.py", "0.3.0", "0.3.1.dev0")
    edit(released, "CHANGELOG.md", "## [0.3.0]", "## [0.3.1] - unreleased\n\n- Newer.\n\n## [0.3.0]")
    check(released)
    release(released, TODAY)
    assert check(released).startswith("0.3.1 is released")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: edit(root, "pyproject.toml", "pytest", "pytest>=8"),
        lambda root: edit(root, "pyproject.toml", "120", "100"),
        lambda root: edit(root, "CHANGELOG.md", "New.", "New, as said."),
        lambda root: (root / "docs/flow.md").write_text("Flow"),
        lambda root: (root / "portal/__pycache__").mkdir(),
        lambda root: (root / "portal/.pages.py.swp").touch(),
    ],
)
def test_what_no_wheel_contains_may_change(released: Path, change: Callable[[Path], object]) -> None:
    change(released)
    check(released)


def test_the_names_of_many_changed_files_are_cut(released: Path) -> None:
    for number in range(8):
        (released / f"portal/new{number}.py").touch()
    assert "portal/new4.py and 3 more changed" in problem(released)


def test_a_new_version_needs_a_section_and_the_other_way_round(released: Path) -> None:
    edit(released, "portal/__init__.py", "0.3.0", "0.4.0.dev0")
    assert "is 0.4.0.dev0, but CHANGELOG.md begins with 0.3.0" in problem(released)
    edit(released, "portal/__init__.py", "0.4.0.dev0", "0.3.0")
    edit(released, "CHANGELOG.md", "## [0.3.0]", "## [0.3.1] - unreleased\n\n## [0.3.0]")
    assert "is 0.3.0, but CHANGELOG.md begins with 0.3.1" in problem(released)


def test_a_date_written_by_hand_is_no_release(project: Path) -> None:
    edit(project, "CHANGELOG.md", "unreleased", "2026-12-01")
    assert "__version__ in portal/__init__.py is 0.3.0.dev0" in problem(project)
    edit(project, "portal/__init__.py", ".dev0", "")
    assert "but not in tools/released.sha256" in problem(project)


def test_a_version_is_released_once(released: Path) -> None:
    with pytest.raises(VersionError, match="0.3.0 is released already"):
        release(released, TODAY)


@pytest.mark.parametrize(
    ("headings", "message"),
    [
        ([], "has no section"),
        (["Unreleased"], "must be like"),
        (["[0.2.0] - 27 November"], "must be like"),
        (["[0.2.0] - unreleased", "[0.1.0] - unreleased"], "only the newest"),
        (["[0.1.0] - unreleased", "[0.2.0] - 2026-11-27"], "but not newer"),
        (["[0.10.0] - 2026-11-26", "[0.9.0] - 2026-11-27"], "but not newer"),
    ],
)
def test_sections_are_in_order(headings: list[str], message: str) -> None:
    with pytest.raises(VersionError, match=message):
        sections_of("".join(f"## {heading}\n" for heading in headings))


@pytest.mark.parametrize("version", ["1.2", "1.2.3-dev", "", "v1.2.3", "1.2.3.post1"])
def test_a_version_has_three_numbers_and_a_suffix_that_pip_orders_before_them(version: str) -> None:
    with pytest.raises(VersionError, match="needs a line like"):
        version_of(f'__version__ = "{version}"\n')
    for good in ("1.2.3", "1.2.3.dev0", "1.2.3rc1"):
        assert version_of(f'__version__ = "{good}"\n') == good


def test_a_shallow_clone_without_tags_gives_the_same_answer(released: Path, tmp_path_factory: TempFolders) -> None:
    clone = tmp_path_factory.mktemp("clones") / "project"

    def git(*arguments: str | Path) -> None:
        who = ("-c", "user.name=Alice", "-c", "user.email=alice@example.org")
        subprocess.run(["git", *who, *arguments], cwd=released, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "release 0.3.0")
    edit(released, "portal/web/pages.py", "1", "2")
    git("commit", "-a", "-m", "web: change a page")
    (released / "docs/flow.md").write_text("Flow")
    git("commit", "-a", "-m", "docs: describe the flow")
    git("clone", "--depth", "1", "--no-tags", released.as_uri(), clone)
    assert problem(clone) == problem(released)
    assert problem(clone).startswith("portal/web/pages.py changed after 0.3.0 was released")


def test_the_product_is_what_a_wheel_contains() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"]} == set(PRODUCT)
    assert {"portal/web/pages.py", "digest/run.py", "templates/web/base.html", "quarantine.sql"} <= {
        *product_files(ROOT)
    }
