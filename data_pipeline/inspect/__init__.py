"""Verify, describe and draw a dataset; read __main__.py first."""
