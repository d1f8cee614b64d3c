"""Fast forms."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks. It would give large ones back to the kernel after each step, which would have to
    clear them again for the next. The main job gains 6 to 17 % of its tokens/s. Elsewhere this does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
