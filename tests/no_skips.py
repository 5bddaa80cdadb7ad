"""A pytest plugin for CI (``-p tests.no_skips``): a test that was skipped or is expected to fail counts as a failure.

CI can install everything, so no test has a reason to be skipped.
"""

from __future__ import annotations

import pytest


def _not_run(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats = {} if reporter is None else reporter.stats
    return [report.nodeid for kind in ("skipped", "xfailed", "xpassed") for report in stats.get(kind, [])]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if anything was skipped."""
    if _not_run(session.config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the tests that were not run."""
    for nodeid in _not_run(config):
        terminalreporter.write_line(f"NOT RUN, which counts as failed here: {nodeid}", red=True)
