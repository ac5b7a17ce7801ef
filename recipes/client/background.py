"""The process's background loop: one daemon thread with an event loop, started when first needed.

What must go on while the application's own loop is blocked lives there: keeping leases alive. After a fork the child
starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading

_lock = threading.Lock()
_started: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None

STOP_SECONDS_MAX = 1.0
"""How long the end of the process waits for the thread."""


def background_loop() -> asyncio.AbstractEventLoop:
    """Answer the process's background loop, starting it if need be. Callable from any thread."""
    global _started
    with _lock:
        pid = os.getpid()
        if _started is None or _started[0] != pid:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop,), name="recipes-background", daemon=True)
            thread.start()
            _started = (pid, loop, thread)
        return _started[1]


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


@atexit.register
def _stop() -> None:
    if _started is not None and _started[0] == os.getpid() and not _started[1].is_closed():
        _started[1].call_soon_threadsafe(_started[1].stop)
        _started[2].join(STOP_SECONDS_MAX)
