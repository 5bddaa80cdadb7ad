"""The section of sign-in methods. Those with many settings have a section of their own."""

from __future__ import annotations

from pydantic import Field

from portal.settings.values import Section


class SignInSettings(Section):
    """Sign-in methods of recipients and staff; see docs/sign-in.md."""

    mailed_link: bool = Field(
        True,
        description="Whether the sign-in page mails links and codes. Links that staff send, and those in digests, work "
        "in any case.",
    )
