"""Adapt a model to tasks that it has never seen, within a budget of time; read __main__.py first."""
