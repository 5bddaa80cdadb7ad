"""The module that uWSGI loads, in a process of its own, since it opens the store and sets up the log when imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(opt={})
import portal.web.preload
shared = set(sys.modules)
from portal.wsgi import application

def ask(request_id, **more):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/quarantine/sign-in", "REMOTE_ADDR": "192.0.2.7"}
    list(application({**environ, "HTTP_X_REQUEST_ID": request_id, **more}, lambda *_: None))

ask("first-request")
ask("second-request", UWSGI_POSTFILE="/etc/passwd")
print(*(name for name in sys.modules if name.startswith("portal.") and name not in shared))
"""


def test_a_refused_request_is_logged_with_its_own_id_and_all_modules_are_loaded_before_the_fork(tmp_path: Path) -> None:
    environ = {
        "QUARANTINE_CONFIG": "/dev/null",
        "QUARANTINE_STORE__URL": f"files://{tmp_path}/store",
        "QUARANTINE_LINKS__KEYS_FILE": f"{tmp_path}/links.keys",
        "QUARANTINE_RSPAMD__URL": "http://127.0.0.1:1",
    }
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["portal.wsgi"]
    [line] = [line for line in run.stderr.splitlines() if "variables for uWSGI" in line]
    assert "request=second-request" in line, run.stderr
