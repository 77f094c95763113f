"""Sudokus and mazes, from CSV files or newly made; read puzzle_type.py first."""
