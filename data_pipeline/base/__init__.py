"""What every package stands on: errors, files, locks, draws; read errors.py first."""
