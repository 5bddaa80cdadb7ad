"""What uWSGI imports: ``module = portal.wsgi:application``. Opens everything after the fork (lazy-apps)."""

from portal.assemble import assemble, log_to_stderr
from portal.settings import load
from portal.web import create_app

log_to_stderr()
application = create_app(assemble(load()))
