"""Load generators as commands: h2load for gRPC, wrk for the JSON gateway, our own for the rest, and their figures."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class LoadError(Exception):
    """A load generator is missing, failed, or had failed requests."""


def grpc_body(message: bytes) -> bytes:
    """Frame one message as gRPC sends it."""
    return struct.pack(">BI", 0, len(message)) + message


def tool(name: str, package: str) -> str:
    """Answer where a tool is.

    Raises:
        LoadError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise LoadError(f"{name} is not installed: apt-get install {package}")
    return path


def _run(command: Sequence[str], seconds_max: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds_max)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{' '.join(command)}: not done after {seconds_max} s") from None
    if done.returncode:
        raise LoadError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def h2load_command(url: str, path: str, body: str, *, connections: int, streams: int, seconds: int) -> list[str]:
    """Answer the command line of h2load: a second to warm up, then the seconds that count."""
    return [
        "h2load",
        f"-D{seconds}",
        "--warm-up-time=1",
        f"-c{connections}",
        f"-m{streams}",
        "-d",
        body,
        "-H",
        "content-type:application/grpc",
        "-H",
        "te:trailers",
        url + path,
    ]


def h2load(command: Sequence[str]) -> tuple[float, int]:
    """Run h2load once.

    Returns:
        Requests a second, and how many there were.

    Raises:
        LoadError: a request failed, or h2load could not run.
    """
    tool("h2load", "nghttp2-client")
    output = _run(command, 600)
    return parse_h2load(output)


def parse_h2load(output: str) -> tuple[float, int]:
    """Read h2load's summary.

    Raises:
        LoadError: a request failed.

    >>> parse_h2load('''finished in 2.00s, 656.50 req/s, 61.55KB/s
    ... requests: 1313 total, 1313 started, 1313 done, 1313 succeeded, 0 failed, 0 errored, 0 timeout''')
    (656.5, 1313)
    """
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    if rate is None or counts is None:
        raise LoadError(f"h2load printed no summary:\n{output}")
    if not int(counts[1]) or int(counts[2]) or int(counts[3]) or int(counts[4]):
        raise LoadError(f"h2load: {counts[0]}")
    return float(rate[1]), int(counts[1])


_WRK_SCRIPT = """wrk.method = "POST"
wrk.body = '%s'
wrk.headers["Content-Type"] = "application/json"
"""


def wrk_command(url: str, path: str, script: str, *, connections: int, seconds: int) -> list[str]:
    """Answer the command line of wrk with one thread."""
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, url + path]


def wrk_script(path: Path, body: str) -> str:
    """Write the script that makes wrk post a body."""
    path.write_text(_WRK_SCRIPT % body)
    return str(path)


def wrk(command: Sequence[str]) -> float:
    """Run wrk once.

    Returns:
        Requests a second.

    Raises:
        LoadError: an answer was not 2xx, a socket failed, or wrk could not run.
    """
    tool("wrk", "wrk")
    output = _run(command, 600)
    return parse_wrk(output)


def parse_wrk(output: str) -> float:
    """Read wrk's summary.

    Raises:
        LoadError: an answer was not 2xx or a socket failed.
    """
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if rate is None or "Non-2xx" in output or "Socket errors" in output:
        raise LoadError(f"wrk: {output}")
    return float(rate[1])


def generator_command(endpoint: str, name: str, **options: float) -> list[str]:
    """Answer the command line of one of our generators."""
    words = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
    return [sys.executable, "-m", "tests.bench.generators", name, f"--endpoint={endpoint}", *words]


def generator(command: Sequence[str]) -> dict[str, float]:
    """Run one of our generators.

    Raises:
        LoadError: it failed.
    """
    return {name: float(value) for name, value in json.loads(_run(command, 1200)).items()}


@contextmanager
def probing(endpoint: str) -> Iterator[dict[str, float]]:
    """Read a small key every 5 ms beside what the block does; its latencies are there when the block has ended."""
    process = subprocess.Popen(
        generator_command(endpoint, "probe"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = {}
    try:
        yield found
        output, _ = process.communicate(timeout=60)
        if process.returncode:
            raise LoadError(f"the probe failed with exit code {process.returncode}")
        found.update(json.loads(output))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
