"""What is measured: each case with its command, its unit and which way is better."""

from __future__ import annotations

import base64
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvserver.proto import rpc_pb2
from tests.bench import load
from tests.bench.servers import BenchServer

VALUE_BYTES = 256
SMALL_VALUE_BYTES = 64
KEY = b"key"
THOUSAND = 1000
STALL_KEYS = 100_000
STALL_BOUND_SECONDS = 0.05

PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
COMPACT, DEFRAGMENT = "/etcdserverpb.KV/Compact", "/etcdserverpb.Maintenance/Defragment"


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much."""

    seconds: int
    directory: Path
    stall_keys: int = STALL_KEYS
    large_keys: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that a case gives.

    Attributes:
        name: its name.
        unit: what it counts.
        higher_is_better: whether more is better.
        digits: after the point.
        short: its name in the table, below another one that it belongs to.
    """

    name: str
    unit: str = "/s"
    higher_is_better: bool = True
    digits: int = 0
    short: str = ""


class Case(ABC):
    """One load, run on both servers in turn."""

    name: str
    metrics: tuple[Metric, ...]
    rounds_max: int | None = None
    optional = False

    @abstractmethod
    def command(self, settings: Settings) -> str:
        """Answer what is run, for the reader."""

    def prepare(self, server: BenchServer, settings: Settings) -> None:  # noqa: B027 - most need nothing
        """Fill a fresh server."""

    @abstractmethod
    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once; answers each metric by name. A metric that a server does not have may be missing."""


def put_body(key: bytes = KEY) -> bytes:
    """A put with a value of 256 bytes."""
    return rpc_pb2.PutRequest(key=key, value=b"v" * VALUE_BYTES).SerializeToString()


class H2Load(Case):
    """A unary call under h2load."""

    def __init__(
        self,
        name: str,
        path: str,
        body: bytes,
        shape: tuple[int, int],
        *,
        fill: Callable[[BenchServer, Settings], None] | None = None,
        writes: bool = False,
    ) -> None:
        connections, streams = shape
        self.name = f"{name} {connections}x{streams}"
        self.metrics = (Metric(self.name),)
        self._slug = re.sub(r"[^a-z0-9]+", "-", self.name)
        self._path = path
        self._body = body
        self._shape = shape
        self._fill = fill
        self._writes = writes

    def _command(self, url: str, settings: Settings, body: str) -> list[str]:
        connections, streams = self._shape
        return load.h2load_command(
            url, self._path, body, connections=connections, streams=streams, seconds=settings.seconds
        )

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return " ".join(self._command("URL", settings, f"{self._slug}.bin"))

    def prepare(self, server: BenchServer, settings: Settings) -> None:
        """Fill a fresh server."""
        if self._fill is not None:
            self._fill(server, settings)

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once."""
        body = settings.directory / f"{self._slug}.bin"
        body.write_bytes(load.grpc_body(self._body))
        server.call(self._path, self._body)  # h2load looks at HTTP statuses only; this fails if gRPC's is not 0
        before = server.revision()
        rate, requests = load.h2load(self._command(server.url, settings, str(body)))
        written = server.revision() - before
        if self._writes and written < requests:
            raise load.LoadError(f"{self.name}: {requests} requests succeeded, but {written} were carried out")
        return {self.name: rate}


class Wrk(Case):
    """A call of the JSON gateway under wrk with 32 connections."""

    def __init__(self, name: str, path: str, body: dict[str, str]) -> None:
        self.name = f"gateway {name}, 32 connections"
        self.metrics = (Metric(self.name),)
        self._slug = f"gateway-{name}.lua"
        self._path = path
        self._body = json.dumps(body)

    def _command(self, url: str, settings: Settings, script: str) -> list[str]:
        return load.wrk_command(url, self._path, script, connections=32, seconds=settings.seconds)

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return " ".join(self._command("URL", settings, self._slug))

    def prepare(self, server: BenchServer, settings: Settings) -> None:
        """Write the key that ranges read."""
        server.call(PUT, put_body())

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once."""
        script = load.wrk_script(settings.directory / self._slug, self._body)
        return {self.name: load.wrk(self._command(server.url, settings, script))}


class WatchFanOut(Case):
    """One writer, many watchers of its key."""

    def __init__(self, watchers: int) -> None:
        self.name = f"watch, {watchers:,} watchers"
        self.metrics = (
            Metric(f"{self.name}: events delivered"),
            Metric(f"{self.name}: latency p50", "ms", higher_is_better=False, digits=1, short="  latency p50"),
            Metric(f"{self.name}: latency p99", "ms", higher_is_better=False, digits=1, short="  latency p99"),
        )
        self._watchers = watchers

    def _command(self, endpoint: str, settings: Settings) -> list[str]:
        return load.generator_command(endpoint, "watch", watchers=self._watchers, seconds=settings.seconds)

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return _readable(self._command("HOST:PORT", settings))

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once."""
        found = load.generator(self._command(server.endpoint, settings))
        values = (found["rate"], found["p50"] * 1000, found["p99"] * 1000)
        return {metric.name: value for metric, value in zip(self.metrics, values, strict=True)}


class KeepAlive(Case):
    """Leases renewed over streams, each again as soon as it is answered."""

    name = "lease keepalives, 10x10 streams"
    metrics = (Metric(name),)

    def _command(self, endpoint: str, settings: Settings) -> list[str]:
        return load.generator_command(endpoint, "keepalive", seconds=settings.seconds)

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return _readable(self._command("HOST:PORT", settings))

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once, on leases of its own."""
        for lease in rpc_pb2.LeaseLeasesResponse.FromString(server.call("/etcdserverpb.Lease/LeaseLeases", b"")).leases:
            server.call("/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease.ID).SerializeToString())
        return {self.name: load.generator(self._command(server.endpoint, settings))["rate"]}


class Stalls(Case):
    """Small reads beside long work: how long do others wait while the server is busy with one thing?"""

    name = "stalls"
    rounds_max = 3

    WORK = ("range of 100,000 keys", "compaction of 100,000 revisions", "snapshot (defragment)")

    def __init__(self) -> None:
        metrics = []
        for work in self.WORK:
            metrics.append(Metric(f"{work}: time", "ms", higher_is_better=False))
            for what, unit, digits in (
                ("small reads beside it, p99", "ms", 1),
                ("small reads beside it, longest", "ms", 1),
                ("loop stalls above 50 ms", "", 0),
            ):
                metrics.append(Metric(f"{work}: {what}", unit, False, digits, short=f"  {what}"))
        self.metrics = tuple(metrics)

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return (
            f"{settings.stall_keys:,} keys of {VALUE_BYTES} bytes, written twice; then one Range over all, "
            "Compact (physical) at the last revision, Defragment; meanwhile "
            + _readable(load.generator_command("HOST:PORT", "probe", interval=0.005))
        )

    def prepare(self, server: BenchServer, settings: Settings) -> None:
        """Load the keys."""
        _fill(server, settings.stall_keys, VALUE_BYTES)

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once."""
        _fill(server, settings.stall_keys, VALUE_BYTES)
        everything = rpc_pb2.RangeRequest(key=b"key-", range_end=b"key.").SerializeToString()
        compaction = rpc_pb2.CompactionRequest(revision=server.revision(), physical=True).SerializeToString()
        results: dict[str, float] = {}
        calls = ((RANGE, everything), (COMPACT, compaction), (DEFRAGMENT, b""))
        for number, (path, body) in enumerate(calls):
            time.sleep(1.0)  # let what the load left behind settle: write-back, commits, collections
            names = [metric.name for metric in self.metrics[4 * number : 4 * number + 4]]
            before = server.metric_buckets("kvserver_loop_stall_seconds")
            with load.probing(server.endpoint) as latencies:
                time.sleep(0.5)  # the probe's own start
                started = time.monotonic()
                server.call(path, body)
                took = time.monotonic() - started
            after = server.metric_buckets("kvserver_loop_stall_seconds")
            results[names[0]] = took * 1000
            results[names[1]] = latencies["p99"] * 1000
            results[names[2]] = latencies["max"] * 1000
            if after:
                results[names[3]] = _above(after, STALL_BOUND_SECONDS) - _above(before, STALL_BOUND_SECONDS)
        return results


def _above(buckets: dict[float, float], bound: float) -> float:
    return buckets[float("inf")] - buckets[bound]


class Large(Case):
    """A million small keys: loading, memory, restart, snapshot."""

    name = "large"
    rounds_max = 1
    optional = True

    def __init__(self, keys: int = 1_000_000) -> None:
        self.title = f"{keys:,} keys"
        self.metrics = (
            Metric(f"{self.title}: load time", "s", higher_is_better=False, digits=1),
            Metric(f"{self.title}: resident memory", "MiB", higher_is_better=False),
            Metric(f"{self.title}: disk", "MiB", higher_is_better=False),
            Metric(f"{self.title}: snapshot (defragment)", "s", higher_is_better=False, digits=2),
            Metric(f"{self.title}: disk after it", "MiB", higher_is_better=False),
            Metric(f"{self.title}: restart after SIGTERM", "s", higher_is_better=False, digits=2),
            Metric(f"{self.title}: restart after kill -9", "s", higher_is_better=False, digits=2),
            Metric(f"{self.title}: resident memory after restart", "MiB", higher_is_better=False),
            Metric(f"{self.title}: range of all, count only", "ms", higher_is_better=False, digits=1),
        )

    def command(self, settings: Settings) -> str:
        """Answer what is run."""
        return _readable(_fill_command("HOST:PORT", settings.large_keys, SMALL_VALUE_BYTES)) + "; Defragment; restarts"

    def run(self, server: BenchServer, settings: Settings) -> dict[str, float]:
        """Run once."""
        mib = 1024 * 1024
        seconds = _fill(server, settings.large_keys, SMALL_VALUE_BYTES)
        time.sleep(1.0)
        values = [seconds, server.resident_bytes() / mib, server.disk_bytes() / mib]
        started = time.monotonic()
        server.call(DEFRAGMENT, b"")
        values += [time.monotonic() - started, server.disk_bytes() / mib]
        for end in (server.process.stop, server.process.kill):
            server.channel.close()
            end()
            started = time.monotonic()
            server.start(seconds_max=600.0)
            values.append(time.monotonic() - started)
            if server.count() != settings.large_keys:
                raise load.LoadError(f"{server.kind}: {server.count()} keys after a restart")
        values.append(server.resident_bytes() / mib)
        started = time.monotonic()
        server.count()
        values.append((time.monotonic() - started) * 1000)
        return {metric.name: value for metric, value in zip(self.metrics, values, strict=True)}


def _fill_command(endpoint: str, keys: int, value_bytes: int) -> list[str]:
    return load.generator_command(endpoint, "load", keys=keys, value_bytes=value_bytes)


def _fill(server: BenchServer, keys: int, value_bytes: int) -> float:
    """Put so many keys; answers the seconds it took."""
    seconds = load.generator(_fill_command(server.endpoint, keys, value_bytes))["seconds"]
    if server.count() < keys:
        raise load.LoadError(f"{server.kind}: {server.count()} keys, {keys} were put")
    return seconds


def _readable(command: list[str]) -> str:
    return " ".join(["python", *command[1:]])


def _one_key(server: BenchServer, settings: Settings) -> None:
    server.call(PUT, put_body())


def _thousand_keys(server: BenchServer, settings: Settings) -> None:
    _fill(server, THOUSAND, VALUE_BYTES)


def _txn_body() -> bytes:
    """Compare that the key exists, then put it."""
    put = rpc_pb2.PutRequest(key=KEY, value=b"v" * VALUE_BYTES)
    compare = rpc_pb2.Compare(key=KEY, target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.GREATER, version=0)
    return rpc_pb2.TxnRequest(compare=[compare], success=[rpc_pb2.RequestOp(request_put=put)]).SerializeToString()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


SHAPES = ((1, 1), (100, 1), (10, 100))
RANGE_BODY = rpc_pb2.RangeRequest(key=KEY).SerializeToString()
THOUSAND_BODY = rpc_pb2.RangeRequest(key=b"key-", range_end=b"key.").SerializeToString()

SIX: tuple[Case, ...] = (
    *(H2Load("put", PUT, put_body(), shape, writes=True) for shape in SHAPES),
    *(H2Load("range", RANGE, RANGE_BODY, shape, fill=_one_key) for shape in SHAPES),
)
"""Those that the geometric mean is made of."""


def all_cases(settings: Settings) -> tuple[Case, ...]:
    """Answer all cases, in the table's order."""
    return (
        *SIX,
        H2Load("txn (compare, put)", TXN, _txn_body(), (10, 100), fill=_one_key, writes=True),
        H2Load("range of 1,000 keys", RANGE, THOUSAND_BODY, (10, 1), fill=_thousand_keys),
        Wrk("put", "/v3/kv/put", {"key": _base64(KEY), "value": _base64(b"v" * VALUE_BYTES)}),
        Wrk("range", "/v3/kv/range", {"key": _base64(KEY)}),
        WatchFanOut(1_000),
        WatchFanOut(10_000),
        KeepAlive(),
        Stalls(),
        Large(settings.large_keys),
    )
