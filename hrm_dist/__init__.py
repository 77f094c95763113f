"""The training system; read train.py and trainer.py first."""
