"""How the C library treats freed memory, which decides a CPU step's time more than one would think."""

from __future__ import annotations

import ctypes
import sys

#: mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step instead of giving it back to the kernel.

    A step frees and takes the same large tensors again and again; the kernel zeroes every page of them each time. For
    the whole process and for good. Returns whether it was done; elsewhere than on glibc nothing is.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
