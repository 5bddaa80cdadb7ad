"""Copying between stores, and import from the original script."""
