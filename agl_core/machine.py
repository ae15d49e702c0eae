"""What this machine gives to this process."""

import os


def cores() -> int:
    """CPU cores that this process may use, at least 1: those of its affinity where the system has such a thing.

    macOS has none; there it is the number of cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
