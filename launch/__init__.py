"""Jobs on a Slurm cluster or on this machine: `submit` starts them, `status` follows them, `doctor` checks the nodes.

Read `jobs.spec` first: what a submission is.
"""
