"""How a run's processes join, talk and watch each other; read process_group.py first.

Then read collectives.py.
"""
