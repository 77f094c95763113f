"""The data pipeline: puzzles in, shards out, and batches of these; read build.py first."""
