"""Mazes, any and those with one shortest path; read kind.py first."""
