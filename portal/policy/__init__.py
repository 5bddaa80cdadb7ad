"""Decisions about senders: rules that people make, and what holds for each recipient of a message; and votes, by which
Rspamd is trained."""
