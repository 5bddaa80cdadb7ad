"""Sign-in methods, one module each, and the session that they start."""
