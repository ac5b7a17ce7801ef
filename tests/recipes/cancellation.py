"""Cancelling a coroutine at its n-th await, for every n.

Two moments exist at each await: the task is cancelled while what it waits for is pending (``early``), and it is
cancelled when the result is there already but the task has not seen it (``late``), the one that loses results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Moment = Literal["early", "late"]


class CancelAt(Awaitable[T]):
    """Awaits a coroutine and cancels the current task at its n-th suspension.

    Attributes:
        hit: Whether there was an n-th suspension.
    """

    def __init__(self, work: Coroutine[Any, Any, T], number: int, moment: Moment) -> None:
        self._work = work
        self._number = number
        self._moment = moment
        self.hit = False

    def __await__(self) -> Generator[Any, Any, T]:
        task = asyncio.current_task()
        assert task is not None
        inner = self._work.__await__()
        sent: Any = None
        error: BaseException | None = None
        count = 0
        while True:
            try:
                waited_for = inner.send(sent) if error is None else inner.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            error = None
            count += 1
            if count == self._number:
                self.hit = True
                if self._moment == "early" or waited_for is None:
                    task.cancel()
                else:
                    # Called before the task is woken, since it was added before: the result is there, and lost.
                    waited_for.add_done_callback(lambda _: task.cancel())
            try:
                sent = yield waited_for
            except BaseException as thrown:
                error = thrown


async def at_every_await(
    make: Callable[[], Coroutine[Any, Any, T]],
    check: Callable[[int, str], Awaitable[None]],
    *,
    moment: Moment,
    unless_done: Callable[[T], Awaitable[None]],
    start: int = 1,
) -> int:
    """Run ``make()`` again and again, cancelled at its first await, its second, and so on until it has no such await.

    Args:
        make: Makes a new run.
        check: Called after each run with the number and what happened.
        moment: Early or late.
        unless_done: Called with the result of a run that finished although it was cancelled at its end.
        start: The first await to cancel at.

    Returns:
        How many awaits there were.
    """
    number = start
    while True:
        cancelling: CancelAt[T] = CancelAt(make(), number, moment)

        async def run(awaitable: CancelAt[T] = cancelling) -> T:
            return await awaitable

        task = asyncio.ensure_future(run())
        await asyncio.wait({task}, timeout=20)
        assert task.done(), f"cancelled at await {number}: it hangs"
        if task.cancelled():
            outcome = "cancelled"
        else:
            outcome = "done" if task.exception() is None else repr(task.exception())
            if task.exception() is None:
                await unless_done(task.result())
        await check(number, outcome)
        if not cancelling.hit:
            assert outcome == "done", outcome
            return number - 1
        number += 1
