"""A page that shows what runs did: scores, curves, and every puzzle with its answers."""
