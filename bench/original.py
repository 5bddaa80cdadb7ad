"""The original script of sys4, as a WSGI module: uWSGI loads ``bench.original:application``.

QUARANTINE_BENCH_SCRIPT names its quarantine.py, QUARANTINE_BENCH_STORE a folder, and QUARANTINE_BENCH_SERVER the folder
of PostgreSQL's socket; an empty one switches that mode off. Only its configuration is changed.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("original_quarantine", Path(os.environ["QUARANTINE_BENCH_SCRIPT"]))
    if spec is None or spec.loader is None:
        raise ImportError("QUARANTINE_BENCH_SCRIPT is no Python file")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PREFIX = os.environ["QUARANTINE_BENCH_STORE"]
    module.USE_FILE = bool(module.PREFIX)
    server = os.environ["QUARANTINE_BENCH_SERVER"]
    module.DBCONF = {"host": server, "dbname": "original", "user": "postgres", "password": "none"}
    module.USE_SQL = bool(server)
    return module


application = _script().application
