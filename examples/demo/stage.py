"""Starts the processes of the tour, shows what they say, and waits for what they are expected to say."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from types import TracebackType

COLOURS = {"service": 36, "worker": 33, "candidate": 35, "subscriber": 32, "follower": 34}
CUE_SECONDS = 20.0
"""How long the tour waits for any one thing to happen; everything takes a few seconds at most."""


class MissedCueError(Exception):
    """Something that should have happened did not; says what, and what happened instead."""


class Stage:
    """The processes and the lines they have said.

    Args:
        endpoint: the node's address.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._colour = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._listeners: list[asyncio.Task[None]] = []
        self._lines: list[tuple[str, str]] = []
        self._spoken = asyncio.Condition()

    async def start(self, role: str, *names: str) -> None:
        """Start a process of the role for each name."""
        for name in names:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "examples.demo", role, self._endpoint, name, stdout=asyncio.subprocess.PIPE
            )
            self._processes[name] = process
            self._listeners.append(asyncio.create_task(self._listen(role, name, process)))

    async def kill(self, name: str) -> None:
        """Kill a process as a crash would: no chance to clean up."""
        self.note(f"kill -9 {name}")
        process = self._processes[name]
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def expect(self, name: str, text: str) -> str:
        """Wait until a process has said a line that begins with ``text``, and answer the line.

        Raises:
            MissedCueError: it has not, in time.
        """
        return (await self.expect_one_of([name], text))[1]

    async def expect_one_of(self, names: list[str], text: str) -> tuple[str, str]:
        """Wait until one of several processes has said such a line; answers who, and the line.

        Raises:
            MissedCueError: none has, in time.
        """

        def found() -> tuple[str, str] | None:
            for name, line in self._lines:
                if name in names and line.startswith(text):
                    return name, line
            return None

        try:
            async with asyncio.timeout(CUE_SECONDS), self._spoken:
                await self._spoken.wait_for(lambda: found() is not None)
        except TimeoutError:
            said = [line for name, line in self._lines if name in names]
            raise MissedCueError(f'{" or ".join(names)} did not say "{text}...", but {said}') from None
        cue = found()
        assert cue is not None
        return cue

    def heading(self, text: str) -> None:
        """Show the title of a scene."""
        print(f"\n{self._paint(text, 1)}", flush=True)

    def note(self, text: str) -> None:
        """Show what the tour itself does or sees."""
        print(f"  {text}", flush=True)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    async def _listen(self, role: str, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode().rstrip()
            print(f"  {self._paint(f'{name:>12}', COLOURS[role])} | {line}", flush=True)
            async with self._spoken:
                self._lines.append((name, line))
                self._spoken.notify_all()

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        for process in self._processes.values():
            await process.wait()
        await asyncio.gather(*self._listeners)
