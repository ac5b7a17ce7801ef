"""What comes out: medians, ratios, their geometric mean, as a table and as JSON."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvserver.version import KVSERVER_VERSION
from tests.bench.cases import SIX, VALUE_BYTES, Case, Metric
from tests.support.etcd import ETCD

OURS, THEIRS = "kvserver", "etcd"


@dataclass(slots=True)
class Row:
    """One metric's runs on both servers."""

    metric: Metric
    command: str
    runs: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], THEIRS: []})

    def median(self, kind: str) -> float | None:
        """The median of a server's runs; None if it has none."""
        return statistics.median(self.runs[kind]) if self.runs[kind] else None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is, by medians; None if one has no figure."""
        ours, theirs = self.median(OURS), self.median(THEIRS)
        if not ours or not theirs:
            return None
        return ours / theirs if self.metric.higher_is_better else theirs / ours

    @property
    def spread(self) -> float | None:
        """The largest deviation of a run from its server's median, as a share of it."""
        shares = []
        for kind, runs in self.runs.items():
            median = self.median(kind)
            if median:
                shares += [abs(run - median) / median for run in runs]
        return max(shares, default=None)


def geometric_mean(values: Sequence[float]) -> float:
    """Answer the geometric mean.

    >>> round(geometric_mean([1.0, 4.0]), 6)
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def verdict(rows: Sequence[Row]) -> dict[str, float]:
    """Answer the geometric mean of the six and the smallest of them; empty unless all six were measured."""
    names = {metric.name for case in SIX for metric in case.metrics}
    ratios = [row.ratio for row in rows if row.metric.name in names and row.ratio is not None]
    if len(ratios) < len(names):
        return {}
    return {"geometric_mean_of_six": geometric_mean(ratios), "smallest_of_six": min(ratios)}


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def table(rows: Sequence[Row]) -> str:
    """Align the rows."""
    lines = [("", "unit", f"{OURS}", f"{THEIRS}", "ratio", "spread")]
    for row in rows:
        digits = row.metric.digits
        lines.append(
            (
                row.metric.short or row.metric.name,
                row.metric.unit,
                _figure(row.median(OURS), digits),
                _figure(row.median(THEIRS), digits),
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                "-" if row.spread is None else f"{row.spread:.0%}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    texts = []
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
        if not number:
            texts.append("  ".join("-" * width for width in widths))
    return "\n".join(texts)


def summary(rows: Sequence[Row]) -> str:
    """Answer the sentence below the table."""
    found = verdict(rows)
    if not found:
        return ""
    return (
        f"geometric mean of the six put and range ratios: {found['geometric_mean_of_six']:.2f}, "
        f"the smallest is {found['smallest_of_six']:.2f}"
    )


# -- where it ran ------------------------------------------------------------------------------------------------------


def file_system(path: Path) -> str:
    """Answer the type of the file system that a directory is on."""
    answer = subprocess.run(["df", "--output=fstype", str(path)], capture_output=True, text=True, check=True)
    return answer.stdout.split()[-1]


def sync_seconds(directory: Path, count: int = 200) -> float:
    """Answer the median time of writing 4 KiB and syncing it: what the disk costs each write of both servers."""
    path = directory / "sync"
    times = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(descriptor, 0, 4096 * count)
        os.fsync(descriptor)
        for number in range(count):
            started = time.perf_counter()
            os.pwrite(descriptor, b"x" * 4096, 4096 * number)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times)


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()


def environment(directory: Path) -> dict[str, Any]:
    """Answer what the figures depend on."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "kvserver": KVSERVER_VERSION,
        "etcd": _first_line(ETCD, "--version").removeprefix("etcd Version: "),
        "h2load": _first_line("h2load", "--version"),
        "file_system": file_system(directory),
        "sync_microseconds": round(sync_seconds(directory) * 1e6),
        "load_average": round(os.getloadavg()[0], 2),
        "value_bytes": VALUE_BYTES,
    }


def heading(facts: dict[str, Any], rounds: int, seconds: int) -> str:
    """Answer the lines above the table."""
    return (
        f"kvserver {facts['kvserver']} (Python {facts['python']}) and etcd {facts['etcd']}, one member each, in turn; "
        f"{facts['date']}\n"
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, "
        f"load average {facts['load_average']} before\n"
        f"data on {facts['file_system']}, 4 KiB written and synced in {facts['sync_microseconds']} us\n"
        f"medians of {rounds} runs of {seconds} s; values of {facts['value_bytes']} bytes; "
        "ratio above 1: kvserver is better; spread: the run farthest from its median\n"
        "10x100: 10 connections with 100 calls under way on each"
    )


def as_json(facts: dict[str, Any], rows: Sequence[Row], rounds: int, seconds: int) -> dict[str, Any]:
    """Answer everything, each run included."""
    return {
        "environment": facts,
        "rounds": rounds,
        "seconds": seconds,
        **verdict(rows),
        "rows": [
            {
                "name": row.metric.name,
                "unit": row.metric.unit,
                "higher_is_better": row.metric.higher_is_better,
                "command": row.command,
                "runs": row.runs,
                "medians": {kind: row.median(kind) for kind in row.runs},
                "ratio": row.ratio,
            }
            for row in rows
        ],
    }


def rows_of(case: Case, command: str) -> list[Row]:
    """Answer a case's rows, empty."""
    return [Row(metric, command) for metric in case.metrics]
