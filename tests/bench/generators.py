"""Load generators of our own, each in a process of its own: ``python -m tests.bench.generators <name> ...``.

They print one JSON object when they are done. For what h2load and wrk cannot do: streams that answer, many keys,
latency beside other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Sequence

import uvloop

from kvserver.proto.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    PutRequest,
    RangeRequest,
    WatchCreateRequest,
    WatchRequest,
)
from tests.bench.lean import LeanConnection

WAIT_SECONDS_MAX = 60.0


async def until(done: asyncio.Future[None], connections: Sequence[LeanConnection]) -> None:
    """Wait for ``done``, or fail as soon as a connection does."""
    waiting = {done, *(connection.closed for connection in connections)}
    finished, _ = await asyncio.wait(waiting, timeout=WAIT_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
    if not finished:
        raise TimeoutError(f"not done after {WAIT_SECONDS_MAX} s")
    for future in finished:
        future.result()


def percentile(weighted: list[tuple[float, int]], fraction: float) -> float:
    """A percentile of (value, how often)."""
    weighted = sorted(weighted)
    rank = fraction * sum(count for _, count in weighted)
    for value, count in weighted:
        rank -= count
        if rank <= 0:
            return value
    return weighted[-1][0]


async def load(endpoint: str, *, keys: int, value_bytes: int, connections: int, in_flight: int) -> dict[str, float]:
    """Put ``keys`` different keys as fast as the server takes them."""
    opened = [await LeanConnection.connect(endpoint) for _ in range(connections)]
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    numbers = iter(range(keys))
    left = keys
    value = b"v" * value_bytes

    def put(connection: LeanConnection) -> None:
        number = next(numbers, None)
        if number is not None:
            body = PutRequest(key=b"key-%08d" % number, value=value).SerializeToString()
            connection.call("/etcdserverpb.KV/Put", body)

    def attach(connection: LeanConnection) -> None:
        def ended(stream_id: int) -> None:
            nonlocal left
            left -= 1
            put(connection)
            if not left:
                done.set_result(None)

        connection.on_end = ended

    started = time.monotonic()
    for connection in opened:
        attach(connection)
        for _ in range(in_flight):
            put(connection)
        connection.flush()
    await until(done, opened)
    seconds = time.monotonic() - started
    for connection in opened:
        connection.close()
    return {"seconds": seconds, "rate": keys / seconds}


async def watch(endpoint: str, *, watchers: int, connections: int, streams: int, seconds: float) -> dict[str, float]:
    """One writer, ``watchers`` watchers of its key; it writes again when all have got the event.

    ``streams`` a connection, the watchers spread evenly over them.
    """
    opened = [await LeanConnection.connect(endpoint) for _ in range(connections)]
    writer = await LeanConnection.connect(endpoint)
    everyone = [*opened, writer]
    each = watchers // (connections * streams)
    watchers = each * connections * streams
    create = WatchRequest(create_request=WatchCreateRequest(key=b"watched")).SerializeToString()
    put = PutRequest(key=b"watched", value=b"v" * 256).SerializeToString()
    pending = watchers
    sent = 0.0
    latencies: list[tuple[float, int]] = []
    arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def got(stream_id: int, count: int) -> None:
        nonlocal pending
        pending -= count
        if sent:
            latencies.append((time.perf_counter() - sent, count))
        if not pending and not arrived.done():
            arrived.set_result(None)

    for connection in opened:
        connection.on_messages = got
        for _ in range(streams):
            stream_id = connection.call("/etcdserverpb.Watch/Watch", create, end=False)
            for _ in range(each - 1):
                connection.send(stream_id, create)
        connection.flush()
    await until(arrived, everyone)
    answered: asyncio.Future[None]
    writer.on_end = lambda stream_id: answered.set_result(None)
    events = 0
    began = time.perf_counter()
    busy = resource.getrusage(resource.RUSAGE_SELF)
    while time.perf_counter() - began < seconds:
        pending = watchers
        arrived = asyncio.get_running_loop().create_future()
        answered = asyncio.get_running_loop().create_future()
        sent = time.perf_counter()
        writer.call("/etcdserverpb.KV/Put", put)
        writer.flush()
        try:
            await until(answered, everyone)
            await until(arrived, everyone)
        except TimeoutError:
            raise TimeoutError(f"event {events + 1}: {pending} of {watchers} watchers have not got it") from None
        events += 1
    took = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    for connection in everyone:
        connection.close()
    return {
        "rate": events * watchers / took,
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "events": events,
        "client_cpu": (used.ru_utime + used.ru_stime - busy.ru_utime - busy.ru_stime) / took,
    }


async def keepalive(endpoint: str, *, connections: int, streams: int, seconds: float) -> dict[str, float]:
    """One lease a stream; each stream renews its lease again as soon as it is answered."""
    opened = [await LeanConnection.connect(endpoint) for _ in range(connections)]
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = connections * streams

    def granted(stream_id: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    number = 0
    for connection in opened:
        connection.on_end = granted
        for _ in range(streams):
            number += 1
            connection.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(ID=number, TTL=60).SerializeToString())
        connection.flush()
    await until(done, opened)

    answers = 0
    number = 0

    def attach(connection: LeanConnection, bodies: dict[int, bytes]) -> None:
        def got(stream_id: int, count: int) -> None:
            nonlocal answers
            answers += count
            connection.send(stream_id, bodies[stream_id])

        connection.on_messages = got

    began = time.perf_counter()
    for connection in opened:
        connection.on_end = lambda stream_id: None
        bodies: dict[int, bytes] = {}
        attach(connection, bodies)
        for _ in range(streams):
            number += 1
            body = LeaseKeepAliveRequest(ID=number).SerializeToString()
            bodies[connection.call("/etcdserverpb.Lease/LeaseKeepAlive", body, end=False)] = body
        connection.flush()
    try:
        await asyncio.wait_for(until(asyncio.get_running_loop().create_future(), opened), seconds)
    except TimeoutError:
        pass
    took = time.perf_counter() - began
    for connection in opened:
        connection.close()
    return {"rate": answers / took}


async def probe(endpoint: str, *, interval: float) -> dict[str, float]:
    """Read one small key at a steady pace until standard input ends; say how long the answers took."""
    connection = await LeanConnection.connect(endpoint)
    loop = asyncio.get_running_loop()
    stop = loop.run_in_executor(None, sys.stdin.buffer.read)
    body = RangeRequest(key=b"probe", serializable=True).SerializeToString()
    answered: asyncio.Future[None]
    connection.on_end = lambda stream_id: answered.set_result(None)
    latencies: list[tuple[float, int]] = []
    due = time.perf_counter()
    while not stop.done():
        answered = loop.create_future()
        sent = time.perf_counter()
        connection.call("/etcdserverpb.KV/Range", body)
        connection.flush()
        await until(answered, [connection])
        now = time.perf_counter()
        latencies.append((now - sent, 1))
        # What would have been asked during a long answer would have waited, too.
        latencies.extend((now - late, 1) for late in _missed(due + interval, now, interval))
        due = max(due + interval, now)
        await asyncio.sleep(max(0.0, due - now))
    connection.close()
    return {
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "max": max(latency for latency, _ in latencies),
        "count": len(latencies),
    }


def _missed(first: float, now: float, interval: float) -> list[float]:
    return [first + number * interval for number in range(max(0, int((now - first) / interval)))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one generator."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.generators")
    names = parser.add_subparsers(dest="name", required=True)
    one = names.add_parser("load", help="put many keys")
    one.add_argument("--keys", type=int, required=True)
    one.add_argument("--value-bytes", type=int, default=256)
    one.add_argument("--connections", type=int, default=4)
    one.add_argument("--in-flight", type=int, default=128)
    one = names.add_parser("watch", help="one writer, many watchers")
    one.add_argument("--watchers", type=int, required=True)
    one.add_argument("--connections", type=int, default=10)
    one.add_argument("--streams", type=int, default=10)
    one.add_argument("--seconds", type=float, default=3.0)
    one = names.add_parser("keepalive", help="lease renewals")
    one.add_argument("--connections", type=int, default=10)
    one.add_argument("--streams", type=int, default=10)
    one.add_argument("--seconds", type=float, default=3.0)
    one = names.add_parser("probe", help="latency of small reads until standard input ends")
    one.add_argument("--interval", type=float, default=0.005)
    for each in names.choices.values():
        each.add_argument("--endpoint", required=True)
    options = parser.parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if name not in ("name", "endpoint")}
    generator = {"load": load, "watch": watch, "keepalive": keepalive, "probe": probe}[options.name]
    print(json.dumps(uvloop.run(generator(options.endpoint, **given))), flush=True)
    os._exit(0)  # a reader of standard input may still be waiting


if __name__ == "__main__":
    main()
