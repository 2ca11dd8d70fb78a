"""Spreading independent work over the cores, one thread each."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

COUNT = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COUNT, thread_name_prefix="edgekit-core")


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Does the work for every item, as many at a time as there are cores.

    Args:
        work: Spends its time in code that releases Python's lock, as NumPy, TensorFlow and LiteRT
            do. It must not call `each` itself: all cores could end up waiting for one another.
        items: What to work on; the order in which they end is open.

    Returns:
        What the work returned, in the order of the items.

    Raises:
        Exception: The first one that `work` raised.
    """
    return list(_pool().map(work, items))
