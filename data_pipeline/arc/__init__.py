"""ARC, from task files to the rows of a dataset; read dataset.py first."""
