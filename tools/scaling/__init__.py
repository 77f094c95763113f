"""Accuracy over segments and halting rules, from one evaluation; read `outcomes` first."""
