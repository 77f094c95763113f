"""Does every engine compute the same run on this machine? Read __main__.py first."""
