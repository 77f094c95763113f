"""From a checkpoint to predictions, votes and scores; read evaluate.py first."""
