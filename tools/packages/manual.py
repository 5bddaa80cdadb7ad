"""Man pages and completions of the commands, from what ``--help`` knows.

click-man was tried: it finds no command of a group that imports its commands late, as `quarantine` does, writes one
page for each command, always in section 1, and does not escape lines that begin with a dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from inspect import cleandoc
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from digest.__main__ import main as digest
from portal import __version__
from portal.cli import main as quarantine
from tools.packages.release import epoch

PROGRAMS: dict[str, click.Group] = {"quarantine": quarantine, "quarantine-digest": digest}
_SUMMARIES = {
    "quarantine": "manage messages that Rspamd rejected and the portal holds",
    "quarantine-digest": "send digests of held messages and queued mail",
}
# Where bash-completion, zsh and fish look for the completions of Debian packages.
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/{}",
    "zsh": "usr/share/zsh/vendor-completions/_{}",
    "fish": "usr/share/fish/vendor_completions.d/{}.fish",
}
_KINDS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_END = r"""
.SH EXIT STATUS
0 if everything was done, 1 if something was not done, which the output explains, 2 for wrong arguments or settings, or
a store that needs an operator.
.SH FILES
.TP
.I /etc/rspamd\-quarantine/quarantine.toml
The settings. QUARANTINE_CONFIG in the environment names another file.
.TP
.I /usr/share/doc/rspamd\-quarantine
The documentation for administrators; install.md is the beginning.
.SH NOTES
The commands of the Debian package run as the user
.B quarantine
in /var/lib/quarantine if root calls them. Give them files on standard input.
.SH SEE ALSO
"""


def man_page(name: str) -> str:
    """Return the man page of a program, in section 8."""
    group = PROGRAMS[name]
    context = click.Context(group, info_name=name)
    day = datetime.fromtimestamp(epoch(), UTC).date()
    others = sorted(other for other in (*PROGRAMS, "rspamadm") if other != name)
    lines = [
        f'.TH {_text(name).upper()} 8 {day} "{__version__}" "Mail quarantine"',
        ".SH NAME",
        rf"{_text(name)} \- {_text(_SUMMARIES[name])}",
        ".SH SYNOPSIS",
        f".B {_text(name)}",
        _text(" ".join(group.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *_paragraphs(group.help),
        ".SH OPTIONS",
        *_options(context),
        ".SH COMMANDS",
        *_commands(group, context),
    ]
    references = ", ".join(rf"\fB{_text(other)}\fP({'1' if other == 'rspamadm' else '8'})" for other in others)
    return "\n".join(lines) + _END + references + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield the sections of a group's commands, and of the commands of groups in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        below = click.Context(command, info_name=name, parent=context)
        usage = " ".join([below.command_path.partition(" ")[2], *command.collect_usage_pieces(below)])
        yield f".SS {_text(usage)}"
        yield from _paragraphs(command.help)
        yield from _options(below)
        if isinstance(command, click.Group):
            yield from _commands(command, below)


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            yield ".TP"
            yield rf"\fB{_text(record[0])}\fP"
            yield _line(record[1])


def _paragraphs(text: str | None) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", cleandoc(text or ""))):
        if number:
            yield ".PP"
        yield _line(" ".join(paragraph.split()))


def _line(text: str) -> str:
    """Return a line of text, which must not be read as a request if it begins with a dot or an apostrophe."""
    escaped = _text(text)
    return r"\&" + escaped if escaped.startswith((".", "'")) else escaped


def _text(text: str) -> str:
    """Return text with its backslashes and hyphens escaped: a bare hyphen may be shown as another character."""
    return text.replace("\\", r"\e").replace("-", r"\-")


def completion(name: str, shell: str) -> str:
    """Return the script that completes a program's commands and options in bash, zsh or fish."""
    return _KINDS[shell](PROGRAMS[name], {}, name, f"_{name.replace('-', '_').upper()}_COMPLETE").source() + "\n"


def write(root: Path) -> None:
    """Write the man pages and completions below the root of a package."""
    pages = {f"usr/share/man/man8/{name}.8": man_page(name) for name in PROGRAMS}
    scripts = {path.format(name): completion(name, shell) for name in PROGRAMS for shell, path in COMPLETIONS.items()}
    for path, text in (pages | scripts).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, "utf-8")
