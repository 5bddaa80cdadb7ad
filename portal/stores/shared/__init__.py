"""Code that both stores share, on top of `session.Session`."""
