"""Measure training steps, backward memory and checkpoints; read __main__.py first."""
