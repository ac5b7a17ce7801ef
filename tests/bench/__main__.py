"""``python -m tests.bench``, ``make bench``: our node beside genuine etcd on this machine.

Each case gets two fresh servers; both stand ready, one works: they are loaded in turn, round after round, and who
begins alternates.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.cases import Case, Settings, all_cases
from tests.bench.load import LoadError
from tests.bench.report import Row
from tests.bench.servers import KINDS, BenchServer

REST_SECONDS = 0.5
"""Between two runs: write-back and collections of the one should not cost the other."""


def measure(case: Case, settings: Settings, rounds: int) -> list[Row]:
    """Run one case on both servers in turn."""
    rows = report.rows_of(case, case.command(settings))
    servers: dict[str, BenchServer] = {}
    try:
        for kind in KINDS:
            servers[kind] = BenchServer(kind, settings.directory / kind)
        for server in servers.values():
            case.prepare(server, settings)
        for number in range(min(rounds, case.rounds_max or rounds)):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                time.sleep(REST_SECONDS)
                found = case.run(servers[kind], settings)
                figures = []
                for row in rows:
                    value = found.get(row.metric.name)
                    if value is not None:
                        row.runs[kind].append(value)
                        figures.append(f"{value:,.{row.metric.digits}f}{row.metric.unit}")
                print(f"  {case.name}, round {number + 1}, {kind}: {', '.join(figures)}", file=sys.stderr, flush=True)
    finally:
        for server in servers.values():
            server.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="kvserver beside genuine etcd")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each case on each server")
    parser.add_argument("--seconds", type=int, default=4, help="length of a run")
    parser.add_argument("--quick", action="store_true", help="two rounds of one second: whether it works")
    parser.add_argument("--large", action="store_true", help="also 1,000,000 keys; takes minutes")
    parser.add_argument("--large-keys", type=int, default=1_000_000, help="how many keys --large loads")
    parser.add_argument(
        "--only", default="", help="only cases whose name contains one of these words (comma separated)"
    )
    parser.add_argument("--dir", default="/var/tmp", help="where the data directories lie; a disk, not a tmpfs")
    parser.add_argument("--json", metavar="PATH", help="write all runs there")
    parser.add_argument("--list", action="store_true", help="list the cases with their commands")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 2), 1
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.dir))
    settings = Settings(options.seconds, directory, large_keys=options.large_keys)
    words = [word.strip() for word in options.only.split(",") if word.strip()]
    chosen = [
        case
        for case in all_cases(settings)
        if (any(word in case.name for word in words) if words else not case.optional or options.large)
    ]
    rows: list[Row] = []
    try:
        if options.list:
            print("\n".join(f"{case.name}: {case.command(settings)}" for case in chosen))
            return 0
        facts = report.environment(directory)
        if facts["file_system"] == "tmpfs":
            raise LoadError(f"--dir={options.dir} is a tmpfs, where a sync costs nothing: choose a directory on a disk")
        for case in chosen:
            try:
                rows += measure(case, settings, options.rounds)
            except LoadError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                rows += report.rows_of(case, case.command(settings))
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(report.heading(facts, options.rounds, options.seconds), end="\n\n")
    print(report.table(rows), end="\n\n")
    print(report.summary(rows))
    print("commands: python -m tests.bench --list")
    if options.json:
        Path(options.json).write_text(
            json.dumps(report.as_json(facts, rows, options.rounds, options.seconds), indent=1)
        )
    return 0 if all(row.runs["kvserver"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
