"""Sudoku: rules, symmetries, a solver and a generator; read kind.py first."""
