"""Checks of sign-in methods, for ``quarantine check``."""

from __future__ import annotations

import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from portal.cli.finding import Finding
from portal.model.domains import shown_address
from portal.openid import ProviderUnavailable, make_providers, redirect_uri
from portal.policy.staff import Staff
from portal.settings import Settings

_LISTED = 20  # people


def ways(settings: Settings) -> Iterator[Finding]:
    """Check that recipients have a way to sign in."""
    if settings.sign_in.mailed_link or settings.oidc or settings.ldap.uri or settings.imap.host:
        return
    if settings.proxy.secret is not None:
        text = (
            "the proxy is the only method, and it does not say when somebody signed in there: staff cannot do on pages "
            "what needs a recent sign-in (docs/sign-in.md)"
        )
        yield Finding(None, "sign-in", text)
    else:
        text = "nobody can sign in: sign_in.mailed_link is false, and no other method is set (docs/sign-in.md)"
        yield Finding(False, "sign-in", text)


def second_factors(settings: Settings, staff: Staff) -> Iterator[Finding]:
    """Report whose use of the console is as safe as their mailbox only."""
    people = staff.open_by_mail()
    if not people:
        return
    names = ", ".join(map(shown_address, people[:_LISTED])) + ", …" * (len(people) > _LISTED)
    if settings.staff.second_factor:
        text = (
            "everybody who can read their mail can set it up and open the console. For each, run `quarantine staff "
            "set-up-code ADDRESS` and give them the code (docs/staff.md)"
        )
    else:
        text = (
            "everybody who can read their mail can open the console, whatever other ways to sign in there are. Set "
            "staff.second_factor = true, and have them set it up (docs/staff.md)"
        )
    yield Finding(None, "second factor", f"not set up by {names}: {text}")


def providers(settings: Settings) -> Iterator[Finding]:
    """Check that the providers of OpenID Connect answer, and name the addresses to register there."""
    urls = _public_urls(settings)
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


def _public_urls(settings: Settings) -> list[str]:
    """Return the addresses of the portal. Each may be another server of Nginx, with its own files."""
    own = [table.public_url for table in settings.domains.values() if table.public_url is not None]
    return list(dict.fromkeys([settings.public_url, *own]))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, since the headers would go to the other host as well."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def proxy(settings: Settings) -> Iterator[Finding]:
    """Check for each public URL that what a browser writes into the proxy's headers does not reach the portal.

    The forged user is nobody here, so the check signs nobody in. The page would show it.
    """
    if settings.proxy.secret is None:
        return
    secret = settings.proxy.secret.get_secret_value()
    for public_url in _public_urls(settings):
        url = f"{public_url}/sign-in/proxy"
        # WSGI names headers with hyphens and with underscores alike: a server may remove one spelling only.
        for spelling in ("X-Quarantine-User", "X_Quarantine_User"):
            found = _forged(url, spelling, secret)
            if found is not None:
                yield found
                break
        else:
            yield Finding(True, "proxy", f"forged headers do not reach the portal through {url}")


def _forged(url: str, name: str, secret: str) -> Finding | None:
    """Send forged headers in the spelling of ``name``. Return what is wrong, None if they do not reach the portal."""
    user = f"check-{secrets.token_hex(8)}@forged.invalid"
    headers = {name: user, name.replace("User", "Secret"): secret}
    try:
        with _opener.open(urllib.request.Request(url, headers=headers), timeout=5) as answer:  # noqa: S310
            body = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(1 << 20)
        if error.code < 400 or error.code == 401:
            text = f"{url} asks to sign in first ({error.code}), so forged headers were not tried"
            return Finding(None, "proxy", text)
    except OSError as error:
        return Finding(None, "proxy", f"{url} cannot be reached from here, so forged headers were not tried: {error}")
    if user.encode() not in body:
        return None
    text = (
        f"forged headers reach the portal through {url}, so everybody who knows proxy.secret can sign in as anybody. "
        "Remove X-Quarantine-User and X-Quarantine-Secret from requests in Nginx, also as X_Quarantine_User and "
        "X_Quarantine_Secret, as deploy/nginx/quarantine.conf does"
    )
    return Finding(False, "proxy", text)
