"""Keep what tensors on a CPU free, in place of giving it back to the system and fetching it again in every step.

glibc gives large blocks back at once, and each page of the next one costs a fault: 278,000 in a step of HRM on four
sequences of ARC, a tenth of its time.
"""

import ctypes

import torch

# Of glibc's malloc.h; other C libraries have no mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1  # an int


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep memory that it has had once, if it computes on a CPU and the C library can."""
    if device.type == "cpu" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _MOST)
