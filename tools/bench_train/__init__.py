"""Measure training steps, the memory of the backward pass, and checkpoints; read __main__.py first."""
