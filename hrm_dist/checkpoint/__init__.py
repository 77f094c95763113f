"""The full state of a run on disk, and resuming from it; read reader.py first for the layout, then train_state.py."""
