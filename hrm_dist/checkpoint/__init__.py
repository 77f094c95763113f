"""The full state of a run on disk, and resuming from it; read reader.py first.

reader.py has the layout; read train_state.py next.
"""
