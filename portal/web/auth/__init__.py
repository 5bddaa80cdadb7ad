"""Ways to sign in, one module each, and the session that they begin."""
