"""How runs are doing. Read `run_state` first: which states there are, and what decides."""
