"""The modules of the web workers, imported once in uWSGI's master: ``shared-import = portal.web.preload`` in uwsgi.ini.

The workers are forked from it, so they start sooner and share the memory of the modules. The package `portal.web`
itself imports most of them. The others are named here: those of the store, and those that `portal.assemble` imports
when it makes a part. The store, its connections and all threads belong to a worker, which opens them after the fork
(`portal.wsgi`). Modules imported here must not open or start any of these.
"""

from __future__ import annotations

import gc
from contextlib import suppress

import portal.mail.relay
import portal.mail.smtp_replies
import portal.rspamd  # noqa: F401
from portal.model.errors import SettingsError
from portal.settings import load
from portal.stores import import_store

with suppress(SettingsError):  # `portal.wsgi` reports it
    import_store(load().store.place)  # the library of the other store is not needed
gc.collect()
gc.freeze()  # otherwise the first collection in each worker writes into all objects and so copies their memory
