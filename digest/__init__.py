"""The digest process: sends digests, queued mail and deferred releases. Imports `portal`, never the reverse."""
