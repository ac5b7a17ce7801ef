"""Server processes for tests: started on free ports with a data directory, waited for, and ended by their own id.

Both :class:`NodeProcess` (ours) and ``etcd.GenuineEtcd`` are context managers with ``client_url``, ``stop()``,
``kill()`` and ``start()`` again on the same data directory and ports.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0

_handed_out: set[int] = set()


def free_port() -> int:
    """Answer a loopback port that nobody listens on, and none that was answered before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _handed_out:
            _handed_out.add(port)
            return port


class ProcessFailedError(Exception):
    """A process ended too early or did not become ready; the text holds the end of its log."""


class ServerProcess:
    """A server in a process of its own, ready when its ``/health`` answers 200.

    Args:
        data_dir: where it keeps its data; a temporary directory, removed at the end, if None.
        args: further command line arguments.
        env: further environment.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._owned_dir = Path(tempfile.mkdtemp(prefix="server-")) if data_dir is None else None
        base = self._owned_dir or Path(data_dir or "")
        self.data_dir = base / "data" if self._owned_dir else base
        self.log_path = (self._owned_dir or Path(tempfile.gettempdir())) / f"server-{id(self):x}.log"
        self.port = free_port()
        self.args = list(args)
        self.env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    # what subclasses say

    def command(self) -> list[str]:
        """Answer the command line."""
        raise NotImplementedError

    # surface

    @property
    def client_url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """``host:port`` for gRPC clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The running process's id."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, wait: bool = True) -> Self:
        """Start the process and wait until it is ready.

        Raises:
            ProcessFailedError: it ended, or was not ready in time.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds_max: float = START_SECONDS_MAX) -> None:
        """Wait until ``/health`` answers 200.

        Raises:
            ProcessFailedError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + seconds_max
        while True:
            if self.returncode is not None:
                raise ProcessFailedError(f"exit code {self.returncode} before it was ready\n{self.log_tail()}")
            if self._healthy():
                return
            if time.monotonic() > deadline:
                raise ProcessFailedError(f"not ready after {seconds_max} s\n{self.log_tail()}")
            time.sleep(0.02)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> int:
        """End it gracefully (SIGTERM), by force after a while; answers the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End it at once (SIGKILL); the data directory stays."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def log_tail(self, bytes_max: int = 4000) -> str:
        """Answer the end of its log."""
        try:
            return self.log_path.read_bytes()[-bytes_max:].decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"

    def close(self) -> None:
        """End it and remove what it leaves behind, unless the caller named the data directory."""
        self.kill() if self._process is not None and self._process.poll() is None else None
        if self._owned_dir is not None:
            shutil.rmtree(self._owned_dir, ignore_errors=True)
        else:
            self.log_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.close()


class NodeProcess(ServerProcess):
    """Our node, as ``python -m kvserver``."""

    def command(self) -> list[str]:
        """Answer the command line."""
        return [
            sys.executable,
            "-m",
            "kvserver",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            *self.args,
        ]
