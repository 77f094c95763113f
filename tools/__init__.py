"""Commands: predictions, votes, reports, checks and benchmarks; read evaluate.py first."""
