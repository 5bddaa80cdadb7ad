"""Copies between stores, and from the original script."""
