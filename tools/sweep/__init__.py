"""Sweeps: several settings with several seeds, and what they tell. Read `spec` first: what a sweep is."""
