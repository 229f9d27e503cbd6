"""How the C library keeps memory in a process that trains on the CPU.

A step allocates and frees the same hundreds of megabytes as the one before. By default glibc gives such blocks back to the
system, gets them again page by page, and, in the thread that Ray Train trains in, from an arena that cannot grow; and
small pages cost the matrix products dearly. Kept, and in huge pages where the system offers them (`madvise`), the same
step of a tiny model takes 0.18 s in place of 0.22.

These must be in the environment before the process starts; processes that train on a GPU do not need them.
"""

from __future__ import annotations

TRAINING_HEAP = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest the C library takes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def training_runtime(num_gpus: float) -> dict:
    """The `runtime_env` of a Ray process that trains with `num_gpus` GPUs."""
    return {} if num_gpus else {"env_vars": TRAINING_HEAP}
