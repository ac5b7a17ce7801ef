"""Doing something to its end although the caller is cancelled.

A write that is given up half-way leaves an unknown behind: a key, a lease. So the steps of recipes that change the
store run through :func:`finish`: a cancellation waits until the step's outcome is known, and then takes its course,
with the caller's ``except`` and ``finally`` undoing what was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; a cancellation of the caller is raised after it, and then its result is dropped.

    ``work`` must be bounded in time, and store in an object what its caller needs to know for undoing it.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen; the cancellation takes precedence
        raise cancelled
    return task.result()
