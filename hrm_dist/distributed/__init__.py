"""How a run's processes join, talk and watch each other; read process_group.py first, then collectives.py."""
