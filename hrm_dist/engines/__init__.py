"""Ways to spread the network and its optimizer over the ranks; read base.py first, what the trainer asks of each."""
