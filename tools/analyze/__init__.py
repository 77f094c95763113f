"""What a model does between its input and its answer; read `observe` first, then `watch`."""
