"""kvctl over TLS, to a genuine etcd with a certificate of its own making."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ctl.genuine import Server

INSECURE = ["--insecure-transport=false", "--insecure-skip-tls-verify"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("tls"), tls=True)
    yield server
    server.stop()


def test_commands_work_over_tls(server: Server) -> None:
    assert server.kvctl(["put", "k", "v" * 100_000, *INSECURE]).stdout == b"OK\n"
    assert server.kvctl(["get", "k", "--print-value-only", *INSECURE]).stdout == b"v" * 100_000 + b"\n"
    assert server.kvctl(["endpoint", "health", *INSECURE]).code == 0


def test_watch_works_over_tls(server: Server) -> None:
    server.kvctl(["put", "w", "v" * 100_000, *INSECURE])
    running = server.run("kvctl", "watch", "w", "--rev=1", *INSECURE)
    assert running.lines(3) == ["PUT", "w", "v" * 100_000]
    running.interrupt()


def test_an_unknown_certificate_is_refused(server: Server) -> None:
    outcome = server.kvctl(["get", "k", "--insecure-transport=false", "--command-timeout=300ms"])
    assert (outcome.code, outcome.stdout) == (1, b"")
    assert outcome.stderr.endswith(b"Error: context deadline exceeded\n")
