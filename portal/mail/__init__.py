"""Composing and sending mail: SMTP, its wire format, templates and languages."""
