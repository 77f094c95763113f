"""A page of results made from run folders and sweeps; read __main__.py first."""
