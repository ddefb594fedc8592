"""Memory that was given back shall really be given back."""

from __future__ import annotations

import contextlib
import ctypes

# mallopt(3), malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 128 << 10  # bytes; glibc's first value for both


def be_frugal() -> None:
    """Let this process's C library return each large block to the system when it is freed.

    By itself glibc raises its bounds to the largest block that was ever freed, 32 MiB at most, and
    keeps what is smaller: after some windows of LZMA a process holds twice what it uses. Without
    glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # Setting one of them also ends the raising.
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGE)
