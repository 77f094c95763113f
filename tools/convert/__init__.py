"""Published weights in and out; read __main__.py first."""
