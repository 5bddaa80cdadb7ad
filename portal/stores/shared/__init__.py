"""What is the same in both stores, once, over `session.Session`."""
