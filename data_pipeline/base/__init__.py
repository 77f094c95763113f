"""What every package of the project stands on: errors, files, locks, draws; read errors.py first."""
