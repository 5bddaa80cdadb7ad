"""What uWSGI imports: ``module = portal.wsgi:application``. Opens everything after the fork (lazy-apps)."""

from portal.assemble import assemble
from portal.settings import load
from portal.web import create_app

application = create_app(assemble(load()))
