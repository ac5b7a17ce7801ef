"""Two servers that are given the same steps, and what each answered, made comparable.

A *scenario* is a list of steps that build on each other. It is run once on both sides, at the same time; each of its
steps is then a test of its own, so that a failure names the step. Before a scenario both sides are emptied, brought to
the same revision and compacted there: revisions and counts are compared as they are, only what has to differ is masked
(ids of members, clusters and leases that the server chose, ports, durations, sizes, Raft terms and indexes).
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from kvserver.proto import rpc_pb2 as pb
from tests.support.etcd import ETCDCTL, etcdctl_environment
from tests.support.processes import ServerProcess

STEP_SECONDS_MAX = 15.0

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]+")

Outcome = dict[str, str]
"""What a step left, by name of its part (stdout, stderr, exit code, status, body, ...)."""


class Side:
    """One of the two servers, with what is masked in its answers."""

    def __init__(self, name: str, server: ServerProcess) -> None:
        self.name = name
        self.server = server
        self.channel = grpc.insecure_channel(server.endpoint)
        header = self.call("KV/Range", pb.RangeRequest(key=b"\0"), pb.RangeResponse).header
        self.member_id = header.member_id
        self.cluster_id = header.cluster_id
        self.start_revision = 0
        self.captured: dict[str, str] = {}
        self.background: dict[str, Any] = {}

    def call(self, method: str, request: Message, response: type[Message]) -> Any:
        """Call a unary method of ``etcdserverpb``."""
        return self.channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )(request, timeout=STEP_SECONDS_MAX)

    def revision(self) -> int:
        """Answer the current revision."""
        return int(self.call("KV/Range", pb.RangeRequest(key=b"\0"), pb.RangeResponse).header.revision)

    def put(self, key: bytes) -> int:
        """Put a key; answers the revision."""
        return int(self.call("KV/Put", pb.PutRequest(key=key), pb.PutResponse).header.revision)

    def clear(self) -> None:
        """Remove all keys and leases, and forget what was captured."""
        for lease in self.call("Lease/LeaseLeases", pb.LeaseLeasesRequest(), pb.LeaseLeasesResponse).leases:
            with contextlib.suppress(grpc.RpcError):
                self.call("Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=lease.ID), pb.LeaseRevokeResponse)
        self.call("KV/DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"), pb.DeleteRangeResponse)
        self.captured.clear()

    def settle(self) -> None:
        """End what a scenario left running."""
        for process in self.background.values():
            process.close()
        self.background.clear()

    def expand(self, text: str) -> str:
        """Fill in ``{r}``, ``{r+2}`` (revisions from the scenario's start on), ``{endpoint}`` and captured values."""

        def fill(match: re.Match[str]) -> str:
            name, offset = match.group(1), match.group(2)
            if name == "r":
                return str(self.start_revision + int(offset or 0))
            if name == "endpoint":
                return self.server.endpoint
            if name == "url":
                return self.server.client_url
            if name == "member":
                return f"{self.member_id:x}"
            value = self.captured[name]
            return str(int(value, 16)) if match.group(3) else value

        return re.sub(r"\{([a-z_]\w*)([+-]\d+)?(:d)?\}", fill, text)

    def mask(self, text: str) -> str:
        """Replace what has to differ between two servers."""
        for name, value in self.captured.items():
            if len(value) < 8:
                continue  # a revision or the like: the same on both sides
            text = text.replace(value, f"<{name}>")
            with contextlib.suppress(ValueError):
                text = text.replace(str(int(value, 16)), f"<{name}>")
        for name, number in (("member", self.member_id), ("cluster", self.cluster_id)):
            text = text.replace(f"{number:x}", f"<{name}>").replace(str(number), f"<{name}>")
        text = text.replace(self.server.endpoint, "<endpoint>")
        for pattern, replacement in _MASKS:
            text = pattern.sub(replacement, text)
        return text


_MASKS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"http://127\.0\.0\.1:\d+|http://localhost:\d+", "<url>"),
        (r"took = \S+", "took = <duration>"),
        (r'"took":"[^"]*"', '"took":"<duration>"'),
        (r'("Took" : )\S+', r"\1<duration>"),
        (r'("raft_?[tT]erm":"?)\d+', r"\1<term>"),
        (r'("RaftTerm" : )\d+', r"\1<term>"),
        (r'("[rR]aft(?:Applied)?Index"(?: : |:"?))\d+', r"\1<index>"),
        (r'("(?:dbSize|DBSize|dbSizeInUse)"(?: : |:"?))\d+', r"\1<size>"),
        (r"(raft_term: )\d+", r"\1<term>"),
        (r"\d+(?:\.\d+)? [kMG]?B, (\w+, \w+), \d+, \d+, \d+, ", r"<size>, \1, <term>, <index>, <index>, "),
        (r"(?<=[ /])0xc[0-9a-f]{9}", "<pointer>"),
    )
]


def masked_log_line(line: str) -> str:
    """Keep of one of etcdctl's JSON log lines what the server has a part in."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict) or "level" not in record:
        return line
    return f"log: {record.get('msg', '')} {record.get('error', '')}".rstrip()


# -- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing done on both sides.

    Attributes:
        name: its name in the test's id.
        run: does it on one side, answers what came back.
    """

    name: str
    run: Callable[[Side], Outcome]


@dataclass(frozen=True)
class Scenario:
    """Steps that build on each other."""

    name: str
    steps: Sequence[Step]
    masks: Sequence[tuple[str, str]] = field(default=())

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        assert len(names) == len(set(names)), f"{self.name}: {[n for n in names if names.count(n) > 1]}"


def text_of(data: bytes) -> str:
    """Make bytes printable, whatever they are."""
    return data.decode("utf-8", "backslashreplace")


def ctl(
    command: str,
    *,
    stdin: str = "",
    capture: dict[str, str] | None = None,
    proto: type[Message] | None = None,
    table: bool = False,
    hide: Sequence[str] = (),
    normalise: Callable[[str], str] | None = None,
    name: str | None = None,
) -> Step:
    """Run an etcdctl command line to its end.

    Args:
        command: the line, with placeholders as of :meth:`Side.expand`.
        stdin: what it reads, with placeholders.
        capture: what to remember of stdout, by name: patterns with one group. Masked from then on.
        proto: the message that stdout holds (for ``-w protobuf``).
        table: widths of columns do not matter.
        hide: patterns masked in this step only.
        normalise: brings stdout into one of several orders that are all right.
        name: the step's name if not the line itself.
    """

    def run(side: Side) -> Outcome:
        done = subprocess.run(
            [ETCDCTL, f"--endpoints={side.server.endpoint}", *shlex.split(side.expand(command))],
            input=side.expand(stdin).encode(),
            capture_output=True,
            env=_environment(),
            timeout=STEP_SECONDS_MAX,
            check=False,
        )
        stdout = text_of(done.stdout)
        for key, pattern in (capture or {}).items():
            found = re.search(pattern, stdout)
            side.captured[key] = found.group(1) if found else f"(no {key})"
        if proto is not None and done.returncode == 0:
            stdout = text_format.MessageToString(proto.FromString(done.stdout))
            stdout = re.sub(r"(cluster_id|member_id|raft_term): \d+", r"\1: <id>", stdout)
        if table:
            stdout = re.sub(r"-+", "-", re.sub(r" +", " ", re.sub(r"(\d+) kB|true", r"\g<0>", stdout)))
            stdout = re.sub(r"\| \d+(\.\d+)? [kM]?B \|", "| <size> |", stdout)
            stdout = re.sub(r"\| \d+ \| \d+ \| \d+ \|", "| <term> | <index> | <index> |", stdout)
        if normalise is not None:
            stdout = normalise(stdout)
        stderr = "\n".join(masked_log_line(line) for line in text_of(done.stderr).splitlines())
        if stderr.startswith("panic: "):  # a fault of etcdctl itself; the stack holds addresses
            stderr = stderr.partition("\n")[0]
        outcome = {"exit code": str(done.returncode), "stdout": stdout, "stderr": stderr}
        return {part: hide_in(value, hide) for part, value in outcome.items()}

    return Step(name or command, run)


def hide_in(text: str, patterns: Sequence[str]) -> str:
    """Mask what matches any of the patterns."""
    for pattern in patterns:
        text = re.sub(pattern, "<hidden>", text)
    return text


def _environment() -> dict[str, str]:
    environment = etcdctl_environment("")
    del environment["ETCDCTL_ENDPOINTS"]
    return environment


class Background:
    """An etcdctl that goes on while other steps run; its lines are collected as they come."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment()
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(masked_log_line(text_of(line.rstrip(b"\n"))))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def write(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait(self, reached: Callable[[list[str]], bool], seconds: float = STEP_SECONDS_MAX) -> bool:
        """Wait until its lines are as ``reached`` says, or it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: reached(self.lines) or self._ended, seconds)
            return reached(self.lines)

    def close(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it; answers the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(STEP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return code


def start(name: str, command: str, *, lines: int = 0, stdin: str = "") -> Step:
    """Start an etcdctl that stays, and wait for its first ``lines`` lines."""

    def run(side: Side) -> Outcome:
        process = Background([ETCDCTL, f"--endpoints={side.server.endpoint}", *shlex.split(side.expand(command))])
        side.background[name] = process
        if stdin:
            process.write(side.expand(stdin))
        process.wait(lambda seen: len(seen) >= lines)
        return {"lines": "\n".join(process.lines[:lines])}

    return Step(f"start {name}: {command}", run)


def type_in(name: str, text: str) -> Step:
    """Type a line into a running ``watch -i`` and wait until the watch stream has taken it (a progress answer)."""

    def run(side: Side) -> Outcome:
        process = side.background[name]
        process.write(side.expand(text) + "\n")
        _await_progress(process)
        return {}

    return Step(f"{name} < {text}", run)


def _await_progress(process: Background) -> None:
    count = _progress_lines(process.lines)
    deadline = time.monotonic() + STEP_SECONDS_MAX
    while time.monotonic() < deadline:
        process.write("progress\n")
        if process.wait(lambda seen: _progress_lines(seen) > count, 0.3):
            return
    raise AssertionError(f"no progress answer; lines: {process.lines}")


def _progress_lines(lines: list[str]) -> int:
    return sum(line.startswith("progress notify") for line in lines)


def lines_of(name: str, count: int, *, until: str | None = None) -> Step:
    """Wait for lines of a running etcdctl beside its progress answers; compares all so far."""

    def run(side: Side) -> Outcome:
        process = side.background[name]

        def wanted(seen: list[str]) -> bool:
            return len(_without_progress(seen)) >= count

        process.wait(wanted)
        return {"lines": "\n".join(_without_progress(process.lines))}

    return Step(f"{count} lines of {name}", run)


def _without_progress(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("progress notify")]


def stop(name: str, how: signal.Signals = signal.SIGTERM, *, hide: Sequence[str] = ()) -> Step:
    """End a running etcdctl; compares its lines and exit code."""

    def run(side: Side) -> Outcome:
        process = side.background.pop(name)
        code = process.close(how)
        return {
            "exit code": str(code),
            "lines": hide_in("\n".join(_without_progress(process.lines)), hide),
        }

    return Step(f"stop {name} ({how.name})", run)


def ended(name: str, *, hide: Sequence[str] = ()) -> Step:
    """Wait until an etcdctl has ended by itself; compares its lines and exit code."""

    def run(side: Side) -> Outcome:
        process = side.background.pop(name)
        try:
            process.process.wait(STEP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.close()
            return {"exit code": "did not end", "lines": "\n".join(process.lines)}
        return {
            "exit code": str(process.close()),
            "lines": hide_in("\n".join(_without_progress(process.lines)), hide),
        }

    return Step(f"end of {name}", run)


def keys_below(prefix: str, count: int) -> Step:
    """Wait until there are ``count`` keys below a prefix."""

    def run(side: Side) -> Outcome:
        key = prefix.encode()
        request = pb.RangeRequest(key=key, range_end=key[:-1] + bytes((key[-1] + 1,)), count_only=True)
        deadline = time.monotonic() + STEP_SECONDS_MAX
        while True:
            found = side.call("KV/Range", request, pb.RangeResponse).count
            if found == count or time.monotonic() > deadline:
                return {"count": str(found)}
            time.sleep(0.01)

    return Step(f"{count} keys below {prefix}", run)


# -- running ----------------------------------------------------------------------------------------------------------


class Pair:
    """Both sides."""

    def __init__(self, ours: Side, genuine: Side) -> None:
        self.ours = ours
        self.genuine = genuine
        self._results: dict[int, dict[str, tuple[Outcome, Outcome]]] = {}
        self._threads = ThreadPoolExecutor(2)

    def both(self, action: Callable[[Side], Any]) -> tuple[Any, Any]:
        """Do something on both sides at the same time."""
        first, second = self._threads.submit(action, self.ours), self._threads.submit(action, self.genuine)
        return first.result(), second.result()

    def align(self) -> None:
        """Empty both sides, bring them to the same revision and compact there."""
        self.both(Side.clear)
        self.both(lambda side: side.put(b"align"))
        target = max(self.both(Side.revision))

        def catch_up(side: Side) -> None:
            while side.revision() < target:
                side.put(b"align")
            side.call("KV/DeleteRange", pb.DeleteRangeRequest(key=b"align"), pb.DeleteRangeResponse)
            side.start_revision = side.revision()
            side.call(
                "KV/Compact", pb.CompactionRequest(revision=side.start_revision, physical=True), pb.CompactionResponse
            )

        self.both(catch_up)

    def run(self, scenario: Scenario) -> dict[str, tuple[Outcome, Outcome]]:
        """Run a scenario, once; answers (ours, genuine) by step."""
        if id(scenario) not in self._results:
            self.align()
            ours, genuine = self.both(lambda side: _run_steps(side, scenario))
            self._results[id(scenario)] = {step.name: (ours[step.name], genuine[step.name]) for step in scenario.steps}
        return self._results[id(scenario)]

    def close(self) -> None:
        """Close the channels."""
        self.both(Side.settle)
        self.ours.channel.close()
        self.genuine.channel.close()
        self._threads.shutdown()


def _run_steps(side: Side, scenario: Scenario) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    try:
        for step in scenario.steps:
            try:
                outcomes[step.name] = step.run(side)
            except Exception as error:  # names its side, so that it never compares equal
                outcomes[step.name] = {"failed": f"on {side.name}: {error!r}"}
    finally:
        side.settle()
    return {
        name: {part: _extra(side.mask(text), scenario.masks) for part, text in outcome.items()}
        for name, outcome in outcomes.items()
    }


def _extra(text: str, masks: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in masks:
        text = re.sub(pattern, replacement, text)
    return text


def cases(scenarios: Sequence[Scenario]) -> list[Any]:
    """Answer a test parameter for each step of each scenario."""
    return [
        pytest.param(scenario, step, id=f"{scenario.name}: {_UNPRINTABLE.sub(' ', step.name)}")
        for scenario in scenarios
        for step in scenario.steps
    ]
