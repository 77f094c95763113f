"""Find the batch sizes that fit a GPU; read __main__.py first."""
