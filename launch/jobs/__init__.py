"""Jobs of a run, a dataset or predictions: checked, queued, run and on record.

Read `spec` first (what is to run), then `queue` (checks it with the cluster and submits), `job` (what runs on a node)
and `log` (the record that they leave, from which `job_state` tells how jobs are doing).
"""
