"""The WSGI application for uWSGI: ``module = portal.wsgi:application``. Opens the store after the fork (lazy-apps).

Wrong settings or an unusable store end the program with an error message. An unavailable store does not: when one
worker fails to load the application, uWSGI stops all workers (`need-app`), so a worker that starts while PostgreSQL
restarts would stop the portal. Such a worker answers 503 until the store is available.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from functools import partial

from portal.assemble import assemble, close_outcomes, log_as_chosen, log_to_stderr
from portal.model.errors import QuarantineError, SettingsError, StoreUnavailable, StoreUnusable
from portal.model.log_lines import begin_request
from portal.settings import Settings, load
from portal.web import Application, StartResponse, create_app
from portal.web.request import Environ

log = logging.getLogger("quarantine.web")

# For what is not recorded yet when a worker ends. uWSGI kills one that takes a minute, systemd the service after 75 s.
_CLOSING_SECONDS = 5
_NO_APP = 22  # uWSGI's own exit status of a worker that could not load its application: with need-app the master exits


def _created(settings: Settings) -> Application:
    """Return the application of this worker, which records what it counted when it ends.

    Raises StoreUnavailable, StoreUnusable.
    """
    import uwsgi  # exists only in programs that uWSGI runs

    parts = assemble(settings, create=True)
    app = create_app(parts, int(uwsgi.opt.get("threads", b"1")))
    uwsgi.atexit = partial(close_outcomes, parts.store, _CLOSING_SECONDS)
    return app


class LazyApplication:
    """The application, opened now or, if the store is unavailable, by the first request after it is available."""

    def __init__(self, settings: Settings) -> None:
        """Open the application. Raises SettingsError, StoreUnusable."""
        self._settings = settings
        self._app: Application | None = None
        self._opening = threading.Lock()
        try:
            self._app = _created(settings)
        except StoreUnavailable as error:
            log.error("started without the store: %s", error)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        # uWSGI acts on these variables: UWSGI_POSTFILE makes any readable file the request body, so a POST could store
        # the portal's keys as a held message. Nginx never sends one.
        if any(name.startswith("UWSGI_") for name in environ):
            begin_request(environ.get("HTTP_X_REQUEST_ID", ""))
            log.warning("refused a request with variables for uWSGI peer=%s", environ.get("REMOTE_ADDR"))
            start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"Variables for uWSGI are not accepted.\n"]
        if self._app is None:
            begin_request(environ.get("HTTP_X_REQUEST_ID", ""))  # the application itself begins all others
        app = self._app or self._open()
        if app is not None:
            return app(environ, start_response)
        start_response(
            "503 Service Unavailable",
            [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"), ("Retry-After", "60")],
        )
        return [b"The quarantine is temporarily unavailable. No messages were lost. Wait a minute, then try again.\n"]

    def _open(self) -> Application | None:
        # Only one thread tries, the others answer at once: connecting to an unreachable server takes seconds, and
        # Rspamd waits for five.
        if not self._opening.acquire(blocking=False):
            return None
        try:
            if self._app is None:
                self._app = _created(self._settings)
                log.info("the store is available")
        except QuarantineError as error:
            log.error("still without the store: %s", error)
        finally:
            self._opening.release()
        return self._app


log_to_stderr()
try:
    settings = load()
    log_as_chosen(settings)
    application = LazyApplication(settings)
except (SettingsError, StoreUnusable) as error:
    log.critical("not started: %s", error)  # the message alone: uWSGI would print a traceback for each worker
    sys.exit(_NO_APP)
