"""Everything that is sent: SMTP, the wire format of a release, templates, languages."""
