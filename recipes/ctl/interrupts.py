"""SIGINT and SIGTERM as a fact that waiting code can look at, so that locks are released and leaders resign."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from recipes.ctl.transport import Client

Handler = signal.Handlers | int | None


class Interrupts:
    """Takes the two signals while it is entered, and wakes the client; outside the main thread it takes none.

    Attributes:
        seen: Whether one came.
    """

    def __init__(self, client: Client) -> None:
        self.seen = False
        self._client = client
        self._before: dict[int, object] = {}
        self._wakeup = -1

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._client.wake_descriptor(), warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self._client.interrupted = True

    def __exit__(self, *failure: object) -> None:
        self._client.interrupted = False
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
