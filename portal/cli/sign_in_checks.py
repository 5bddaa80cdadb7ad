"""Checks of sign-in methods, for ``quarantine check``."""

from __future__ import annotations

from collections.abc import Iterator

from portal.cli.finding import Finding
from portal.openid import ProviderUnavailable, make_providers, redirect_uri
from portal.settings import Settings


def ways(settings: Settings) -> Iterator[Finding]:
    """Check that recipients have a way to sign in."""
    if not (settings.sign_in.mailed_link or settings.oidc or settings.ldap.uri or settings.imap.host):
        text = "nobody can sign in: sign_in.mailed_link is false, and no other method is set (docs/sign-in.md)"
        yield Finding(False, "sign-in", text)


def providers(settings: Settings) -> Iterator[Finding]:
    """Check that the providers of OpenID Connect answer, and name the addresses to register there."""
    own = [table.public_url for table in settings.domains.values() if table.public_url is not None]
    urls = list(dict.fromkeys([settings.public_url, *own]))
    for name, provider in make_providers(settings).items():
        key = f"oidc.{name}"
        try:
            provider.check()
        except ProviderUnavailable as error:
            yield Finding(False, key, f"{error}. Nobody can sign in with it now; other methods work")
            continue
        register = ", ".join(redirect_uri(url, name) for url in urls)
        text = f"{settings.oidc[name].issuer} answers. Redirect address to register there: {register}"
        yield Finding(True, key, text)
