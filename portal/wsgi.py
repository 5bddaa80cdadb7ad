"""What uWSGI imports: ``module = portal.wsgi:application``. Opens everything after the fork (lazy-apps)."""

import logging
import sys

from portal.assemble import assemble
from portal.settings import load
from portal.web import create_app

# One line per event on stderr, which uWSGI and the service manager keep.
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

application = create_app(assemble(load()))
