"""Memory that is kept, by the page faults of a process that takes and frees it over and over."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from hrm_dist.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory(torch.device("cpu"))
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(how: str) -> int:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_freed_memory_is_kept() -> None:
    assert num_faults("kept") < num_faults("given back") / 10
