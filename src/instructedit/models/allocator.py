"""Tuning of the C library's memory allocator for CPU runs."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for later allocations instead of returning it to the kernel.

    Every training or evaluation step frees and allocates the same large tensors, and the kernel zeroes each page that
    it hands out again. The setting applies to the whole process and cannot be undone.

    Returns:
        Whether the setting was applied; False on systems without glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    applied = [mallopt(name, value) == 1 for name, value in settings]
    return all(applied)
