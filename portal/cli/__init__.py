"""The operator's command line, ``quarantine``: the commands of the original manage-quarantine.sh, and more.

An ID is a quarantine id or the MTA's queue id. MTAs reuse queue ids: if several messages match, the command lists them
and does nothing. All printed text from messages has passed `text.shown`, since terminals interpret control characters.
Exit status: 0 done, 1 not done (the output says why), 2 wrong usage or settings, or a store that needs an operator.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from io import TextIOWrapper

import click

from portal import __version__
from portal.cli.options import AS_OPTION

_MODULES = {  # of portal/cli, with their commands
    "audit": ("audit",),
    "digests": ("digests",),
    "domains": ("domains",),
    "jobs": ("jobs",),
    "ldap_aliases": ("ldap-aliases",),
    "listing": ("list",),
    "messages": ("confirm-spam", "delete", "meta", "print", "reannounce", "refuse", "release", "restore", "unlearn"),
    "moving": ("copy", "import-original", "reindex"),
    "recipients": ("forget", "recipient"),
    "rules": ("rules",),
    "scan": ("scan",),
    "site": ("check", "init", "purge", "settings"),
    "staff": ("staff",),
    "stats": ("stats",),
    "tokens": ("token",),
}


class _Commands(click.Group):
    """A group that imports the modules of its commands only when they are called: all of them take half of a start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted(name for names in _MODULES.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None if there is none of this name."""
        for module, names in _MODULES.items():
            if cmd_name in names:
                commands: tuple[click.Command, ...] = import_module(f"portal.cli.{module}").COMMANDS
                return next(command for command in commands if command.name == cmd_name)
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quarantine")
@AS_OPTION
def main(person: str | None) -> None:
    """Manage the quarantine. Settings are read from QUARANTINE_CONFIG, ./quarantine.toml or
    /etc/rspamd-quarantine/quarantine.toml."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ISO 8859-1 terminal cannot print every subject
    # Without a handler Python writes warnings to stderr, where `release` already prints the same error.
    logging.getLogger("quarantine.release").addHandler(logging.NullHandler())
