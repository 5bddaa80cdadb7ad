"""What uWSGI imports: ``module = portal.wsgi:application``. Opens everything after the fork (lazy-apps).

Wrong settings, or a store that is not ours to use, end the program with their sentence. A store that cannot be reached
just now does not: where one worker cannot load the application uWSGI takes all of them down (`need-app`), so a worker
that starts while PostgreSQL restarts would end the portal. Such a worker answers 503 until the store is there.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable

from portal.assemble import assemble, log_to_stderr
from portal.model.errors import QuarantineError, SettingsError, StoreUnavailable, StoreUnusable
from portal.settings import Settings, load
from portal.web import Application, StartResponse, create_app
from portal.web.request import Environ

log = logging.getLogger("quarantine.web")

_NO_APP = 22  # uWSGI's own status for a worker that could not load its application: with need-app the master ends


class Opening:
    """The application, opened now or by the first request that finds the store there."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError, StoreUnusable."""
        self._settings = settings
        self._app: Application | None = None
        self._one = threading.Lock()
        try:
            self._app = create_app(assemble(settings, create=True))
        except StoreUnavailable as error:
            log.error("started without the store: %s", error)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        # uWSGI obeys such variables: UWSGI_POSTFILE makes any file that we can read the request's body, so that a post
        # would hold our keys as a message. Nginx never sends one.
        if any(name.startswith("UWSGI_") for name in environ):
            log.warning("refused a request with variables for uWSGI peer=%s", environ.get("REMOTE_ADDR"))
            start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"Variables for uWSGI are not accepted.\n"]
        app = self._app or self._open()
        if app is not None:
            return app(environ, start_response)
        start_response(
            "503 Service Unavailable",
            [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"), ("Retry-After", "60")],
        )
        return [b"The quarantine cannot be reached at the moment. No mail is lost: try again soon.\n"]

    def _open(self) -> Application | None:
        # One tries, the others answer at once: a server that vanished takes seconds, and Rspamd waits for five.
        if not self._one.acquire(blocking=False):
            return None
        try:
            if self._app is None:
                self._app = create_app(assemble(self._settings, create=True))
                log.info("the store is there")
        except QuarantineError as error:
            log.error("still without the store: %s", error)
        finally:
            self._one.release()
        return self._app


log_to_stderr()
try:
    application = Opening(load())
except (SettingsError, StoreUnusable) as error:
    log.critical("not started: %s", error)  # the sentence alone: uWSGI would print a traceback, once for each worker
    sys.exit(_NO_APP)
