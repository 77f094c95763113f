"""Train to a stated score against the clock; read __main__.py first."""
