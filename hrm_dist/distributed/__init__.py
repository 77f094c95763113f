"""The processes of a run: joining, talking to and watching each other; read process_group.py, then collectives.py."""
