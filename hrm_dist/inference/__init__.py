"""Use a trained model from Python; read solver.py first."""

from hrm_dist.inference.solver import load_solver as load_solver
