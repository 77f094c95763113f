"""Commands around a training: predictions, votes, reports, checks, benchmarks; read evaluate.py first."""
