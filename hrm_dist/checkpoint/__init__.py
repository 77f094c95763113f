"""The full state of a run on disk; read reader.py first, which has the layout, then train_state.py."""
