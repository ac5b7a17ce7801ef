"""``kill -9`` under concurrent writers, again and again, and what must hold after each restart.

A :class:`Campaign` has one node, writers that share a few keys, a lease holder, and watchers that live through all
restarts. Each round loads the node, ends it in some way, starts it again on the same directory and judges the whole
history so far (``checker``): nothing acknowledged is lost, nothing half done, revisions never go back, also across
restarts; the log that was read before is a prefix of the new one; leases and what hangs on them are there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc

from kvserver.proto import rpc_pb2
from tests.faults.checker import (
    Call,
    Compare,
    Delete,
    Event,
    Get,
    Model,
    Put,
    Request,
    Revoke,
    check,
    check_watch,
)
from tests.faults.client import Api, Watcher, perform, read_log, record
from tests.support.processes import NodeProcess

LEASE_SECONDS = 3600
KEYS = [b"key/%02d" % number for number in range(16)]
ALL = Get(b"\0", b"\0")


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did."""

    acknowledged: int
    unknown: int
    revision: int


def end_of(node: NodeProcess) -> int:
    """Wait until a node's process has ended by itself; answers its exit code, negative for a signal."""
    os.waitid(os.P_PID, node.pid, os.WEXITED | os.WNOWAIT)
    code = node.returncode
    assert code is not None
    return code


class Load:
    """Writers and a lease holder on one node; each stops at the first call whose outcome it does not know."""

    def __init__(self, endpoint: str, *, writers: int, rng: Random, name: str, leases: dict[int, str]) -> None:
        self.calls: list[Call] = []
        self.leases = leases
        self.failure: BaseException | None = None
        self._endpoint = endpoint
        self._name = name
        self._stop = threading.Event()
        self._acknowledged = 0
        self._change = threading.Condition()
        self._threads = [
            threading.Thread(
                target=self._run, args=(self._write, f"{name}.{number}", Random(rng.random())), daemon=True
            )
            for number in range(writers)
        ]
        self._threads.append(
            threading.Thread(target=self._run, args=(self._lease, f"{name}.leases", Random(rng.random())), daemon=True)
        )

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def wait_for(self, acknowledged: int) -> None:
        """Wait until so many calls were answered, or all clients have stopped."""
        with self._change:
            self._change.wait_for(
                lambda: self._acknowledged >= acknowledged or not any(thread.is_alive() for thread in self._threads)
            )

    def join(self) -> None:
        """Wait until all clients have stopped.

        Raises:
            AssertionError: the server refused something that it should not.
        """
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise AssertionError(f"a client failed: {self.failure!r}") from self.failure

    def stop(self) -> None:
        """Let the clients finish their calls and stop."""
        self._stop.set()
        self.join()

    def _run(self, work: Callable[[Api, str, Random], None], client: str, rng: Random) -> None:
        api = Api(self._endpoint)
        try:
            work(api, client, rng)
        except BaseException as error:
            self.failure = error
        finally:
            api.close()
            with self._change:
                self._change.notify_all()

    def _do(self, api: Api, client: str, request: Request) -> Call | None:
        call = record(client, request, self.calls, lambda: perform(api, request))
        if call.answer is None:
            return None
        with self._change:
            self._acknowledged += 1
            self._change.notify_all()
        return call

    def _write(self, api: Api, client: str, rng: Random) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            if self._do(api, client, self._request(client, number, rng)) is None:
                return

    @staticmethod
    def _request(client: str, number: int, rng: Random) -> Request:
        value = f"{client} {number} ".encode() + b"x" * rng.choice((0, 10, 100, 1000, 10000))
        key, other = rng.sample(KEYS, 2)
        kind = rng.random()
        if kind < 0.5:
            return Request((Put(key, value),))
        if kind < 0.6:
            return Request((Delete(key),))
        if kind < 0.7:
            return Request((ALL,))
        if kind < 0.9:
            return Request((Put(key, value), Put(other, value), Put(f"own/{client}".encode(), value)))
        compare = Compare(key, "version", rng.randrange(3))
        return Request((Put(key, value), Get(other)), (compare,), (Delete(other), Put(key, value)))

    def _lease(self, api: Api, client: str, rng: Random) -> None:
        while not self._stop.is_set():
            lease = rng.randrange(1, 1 << 62)
            self.leases[lease] = "unknown"
            try:
                api.lease_grant(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=LEASE_SECONDS))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return
            self.leases[lease] = "granted"
            for number in range(rng.randrange(4)):
                key = b"leased/%d" % rng.randrange(8)
                if self._do(api, client, Request((Put(key, f"{client} {lease} {number}".encode(), lease),))) is None:
                    return
            if rng.random() < 0.7:
                self.leases[lease] = "unknown"
                if self._do(api, client, Request((Revoke(lease),))) is None:
                    return
                del self.leases[lease]


class Campaign:
    """One node through many rounds.

    Args:
        node: the node, not started.
        writers: how many write at once.
        seed: of what they write.
    """

    def __init__(self, node: NodeProcess, *, writers: int = 6, seed: int = 0) -> None:
        self.node = node
        self.rng = Random(seed)
        self.calls: list[Call] = []
        self.log: list[Event] = []
        self.rounds: list[Round] = []
        self.leases: dict[int, str] = {}
        self._writers = writers
        self.watchers: list[Watcher] = []

    def __enter__(self) -> Campaign:
        self.node.start()
        self.watchers = [Watcher(self.node.endpoint) for _ in range(2)]
        for watcher in self.watchers:
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self.watchers:
            watcher.close()
        self.node.stop()
        self.node.close()

    def load(self) -> Load:
        """Start a round's clients."""
        load = Load(
            self.node.endpoint,
            writers=self._writers,
            rng=self.rng,
            name=f"round{len(self.rounds) + 1}",
            leases=self.leases,
        )
        load.start()
        return load

    def kill_round(self, acknowledged_min: int) -> Round:
        """Load the node, kill it after so many answers, start it again, judge."""
        load = self.load()
        load.wait_for(acknowledged_min)
        self.node.kill()
        load.join()
        self.node.start()
        return self.judge(load)

    def crash_rounds(self, crash_points: Sequence[str]) -> None:
        """One round a crash point: start with it armed, judge the round before, load the node until it dies there."""
        self.node.stop()
        load = None
        for crash_point in crash_points:
            self.node.env["KVSERVER_CRASH_POINT"] = crash_point
            self.node.start()
            if load is not None:
                self.judge(load)
            load = self.load()
            load.join()
            code = end_of(self.node)
            assert code == -signal.SIGKILL, f"exit code {code}\n{self.node.log_tail()}"
        del self.node.env["KVSERVER_CRASH_POINT"]
        self.node.start()
        if load is not None:
            self.judge(load)

    def stop_round(self, acknowledged_min: int) -> Round:
        """Load the node, end it gracefully under load, start it again, judge."""
        load = self.load()
        load.wait_for(acknowledged_min)
        self.node.stop()
        load.join()
        self.node.start()
        return self.judge(load)

    def judge(self, load: Load) -> Round:
        """Judge everything so far; the node runs, nobody writes.

        Raises:
            AssertionError: a promise is broken.
        """
        self.calls += load.calls
        api = Api(self.node.endpoint)
        try:
            everything = record("judge", Request((ALL,)), self.calls, lambda: perform(api, Request((ALL,))))
            assert everything.answer is not None, "the node is not there"
            revision = everything.answer.revision
            log = read_log(self.node.endpoint, revision)
            assert log[: len(self.log)] == self.log, "the log changed where it was read before"
            self.log = log
            model = check(log, self.calls)
            assert model.revision == revision
            self._judge_leases(api, model)
            for watcher in self.watchers:
                watcher.wait_for(revision)
                check_watch(log, watcher.responses)
        finally:
            api.close()
        answered = sum(call.answer is not None for call in load.calls)
        done = Round(answered, len(load.calls) - answered, revision)
        self.rounds.append(done)
        return done

    def _judge_leases(self, api: Api, model: Model) -> None:
        found = {lease.ID for lease in api.lease_leases(rpc_pb2.LeaseLeasesRequest()).leases}
        for lease, state in list(self.leases.items()):
            if state == "unknown":
                if lease in found:
                    self.leases[lease] = "granted"
                else:
                    del self.leases[lease]
        assert found == set(self.leases), "leases appeared or vanished"
        for lease in sorted(found):
            answer = api.lease_time_to_live(rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True))
            hanging = [key for key, kv in sorted(model.state.items()) if kv.lease == lease]
            assert list(answer.keys) == hanging, f"lease {lease} holds {list(answer.keys)}, not {hanging}"
            assert answer.grantedTTL == LEASE_SECONDS
            assert LEASE_SECONDS / 2 < answer.TTL <= LEASE_SECONDS + 1, answer.TTL


def files_of(data_dir: Path, suffix: str) -> list[Path]:
    """The files of a node's data directory with this suffix, in order."""
    return sorted(data_dir.rglob(f"*{suffix}"))
