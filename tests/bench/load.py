"""Load generators: h2load for gRPC, wrk for the JSON gateway, and what they print as numbers."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path


class LoadError(Exception):
    """A load generator is missing, failed, or had failed requests."""


def grpc_body(message: bytes) -> bytes:
    """Frame one message as gRPC sends it."""
    return struct.pack(">BI", 0, len(message)) + message


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise LoadError(f"{name} is not installed: apt-get install {package}")
    return path


def h2load(url: str, path: str, body: Path, *, connections: int, streams: int, requests: int) -> float:
    """Run h2load once.

    Returns:
        Requests a second.

    Raises:
        LoadError: a request failed, or h2load could not run.
    """
    command = [
        _tool("h2load", "nghttp2-client"),
        f"-n{requests}",
        f"-c{connections}",
        f"-m{streams}",
        "-d",
        str(body),
        "-H",
        "content-type:application/grpc",
        "-H",
        "te:trailers",
        url + path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", done.stdout)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    if done.returncode or rate is None or counts is None:
        raise LoadError(f"h2load failed with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    if int(counts[1]) != requests or int(counts[2]) or int(counts[3]):
        raise LoadError(f"h2load: {counts[0]} of {requests} requests")
    return float(rate[1])


_WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = '%s'
wrk.headers["Content-Type"] = "application/json"
"""


def wrk(url: str, path: str, body: str, *, connections: int, seconds: int, directory: Path) -> float:
    """Run wrk once with one thread.

    Returns:
        Requests a second.

    Raises:
        LoadError: an answer was not 2xx, a socket failed, or wrk could not run.
    """
    script = directory / "wrk.lua"
    script.write_text(_WRK_SCRIPT % body)
    command = [_tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url + path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if done.returncode or rate is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise LoadError(f"wrk failed with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return float(rate[1])
