"""One recurrence for each architecture; read hrm.py first."""
