"""Whether training can work here. Read `results` first: what a check yields, and what becomes of it."""
