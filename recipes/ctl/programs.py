"""Running the programs that ``lock`` and ``watch`` start, without letting the connection or a lease die meanwhile."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from recipes.ctl.transport import Client


def run_program(
    arguments: list[str], environ: Mapping[str, str], stdout: BinaryIO, stderr: BinaryIO, client: Client | None
) -> int:
    """Run a program to its end.

    Its output goes where ours goes. Streams without a file descriptor get it when the program has ended.

    Args:
        arguments: The program and its arguments.
        environ: Its environment.
        stdout: Our standard output.
        stderr: Our standard error.
        client: What to keep going meanwhile.

    Returns:
        Its exit status, negative for a signal.

    Raises:
        OSError: it cannot be started.
    """
    out, err = _descriptor(stdout), _descriptor(stderr)
    process = subprocess.Popen(
        arguments,
        env=environ,
        stdout=subprocess.PIPE if out is None else out,
        stderr=subprocess.PIPE if err is None else err,
    )
    captured: list[tuple[bytes, bytes]] = []

    def wait() -> None:
        captured.append(process.communicate())
        if client is not None:
            client.wake()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    if client is not None:
        client.wait(lambda: bool(captured))
    waiter.join()
    for stream, text in zip((stdout, stderr), captured[0], strict=True):
        if text:
            stream.write(text)
            stream.flush()
    return process.returncode


def _descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None
