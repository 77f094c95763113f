"""The shards of a dataset, written and read back; read sample_format.py first."""
