"""What a node finds at its start: damaged, torn and foreign directories, one in use, a port in use."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvserver.proto.rpc_pb2 import PutRequest, RangeRequest
from tests.faults.campaign import end_of, files_of
from tests.faults.client import Api
from tests.support.etcd import GenuineEtcd, etcdctl
from tests.support.processes import NodeProcess


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    node = NodeProcess()
    try:
        yield node
    finally:
        node.close()


def put(node: NodeProcess, *items: tuple[bytes, bytes]) -> None:
    api = Api(node.endpoint)
    for key, value in items:
        api.put(PutRequest(key=key, value=value))
    api.close()


def contents(node: NodeProcess) -> dict[bytes, bytes]:
    api = Api(node.endpoint)
    answer = api.range(RangeRequest(key=b"\0", range_end=b"\0"))
    api.close()
    return {kv.key: kv.value for kv in answer.kvs}


def sample(count: int) -> list[tuple[bytes, bytes]]:
    return [(b"key %d" % number, b"value %d " % number * 40) for number in range(count)]


def refused(node: NodeProcess) -> str:
    """Start a node that must refuse; answers the reason in its last log line."""
    node.log_path.unlink(missing_ok=True)
    node.start(wait=False)
    assert end_of(node) == 1, node.log_tail()
    last = json.loads(node.log_path.read_text().splitlines()[-1])
    assert last["level"] == "fatal"
    assert "Traceback" not in node.log_tail()
    return str(last["error"])


def warnings_of(node: NodeProcess) -> list[str]:
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines()]
    return [line["msg"] for line in lines if line["level"] == "warn"]


def fingerprint(directory: Path) -> dict[str, str]:
    """Every file's content, but for the lock."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def log_file(node: NodeProcess) -> Path:
    """The log's only segment."""
    (path,) = files_of(node.data_dir, ".wal")
    return path


def written_bytes(path: Path) -> int:
    """Where the zeros begin that a segment ends with."""
    return len(path.read_bytes().rstrip(b"\0"))


def test_a_flipped_bit_in_the_middle_of_the_log_is_refused_with_file_and_byte(node: NodeProcess) -> None:
    node.start()
    put(node, *sample(60))
    node.kill()
    path = log_file(node)
    content = path.read_bytes()
    at = written_bytes(path) // 2
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 0x10]))
    before = fingerprint(node.data_dir)
    reason = refused(node)
    found = re.search(r"damaged at byte (\d+)", reason)
    assert str(path) in reason, reason
    assert found, reason
    assert at - 2048 < int(found[1]) <= at, "names the frame that the byte is in"
    assert "estore" in reason, "says what to do"
    assert fingerprint(node.data_dir) == before, "nothing was changed"
    path.write_bytes(content)
    node.start()
    assert contents(node) == dict(sample(60))


@pytest.mark.parametrize("how", ["truncated", "zeroed"])
def test_a_torn_tail_is_cut_back_with_a_warning_and_nothing_acknowledged_is_lost(node: NodeProcess, how: str) -> None:
    node.start()
    put(node, *sample(40))
    node.kill()
    path = log_file(node)
    acknowledged = written_bytes(path)
    kept = path.read_bytes()[:acknowledged]
    node.start()
    put(node, (b"last", bytes(range(1, 256)) * 20))
    node.kill()
    assert path.read_bytes()[:acknowledged] == kept
    # A restart wrote its term before the last put; the tear is in the put's own frame.
    content = path.read_bytes()
    value_at = content.rindex(b"last")
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(value_at + 100)
        else:
            file.seek(value_at + 100)
            file.write(bytes(written_bytes(path) - value_at - 100))
    node.log_path.unlink()
    node.start()
    assert any(str(path) in line and "cut back" in line for line in warnings_of(node)), node.log_tail()
    assert contents(node) == dict(sample(40))
    put(node, (b"after", b"x"))
    node.kill()
    node.log_path.unlink()
    node.start()
    assert contents(node) == {**dict(sample(40)), b"after": b"x"}
    assert not any("cut back" in line for line in warnings_of(node))


def test_a_damaged_newest_snapshot_is_set_aside_and_the_older_one_serves() -> None:
    node = NodeProcess(args=["--snapshot-count=50"])
    try:
        node.start()
        put(node, *sample(400))
        node.kill()
        snapshots = files_of(node.data_dir, ".snap")
        assert len(snapshots) >= 2
        with snapshots[-1].open("r+b") as file:
            file.seek(200)
            byte = file.read(1)[0]
            file.seek(200)
            file.write(bytes([byte ^ 1]))
        node.start()
        assert contents(node) == dict(sample(400))
        assert files_of(node.data_dir, ".broken")
        assert str(snapshots[-1]) in node.log_path.read_text()
    finally:
        node.close()


def test_a_directory_in_use_is_refused_and_its_owner_goes_on(node: NodeProcess) -> None:
    node.start()
    put(node, (b"a", b"1"))
    second = NodeProcess(data_dir=node.data_dir)
    try:
        reason = refused(second)
        assert "in use" in reason
        assert str(node.data_dir) in reason
    finally:
        second.close()
    assert contents(node) == {b"a": b"1"}


def test_the_directory_of_genuine_etcd_is_refused_and_still_serves_etcd() -> None:
    genuine = GenuineEtcd()
    try:
        genuine.start()
        assert etcdctl(genuine.endpoint, "put", "a", "1").exit_code == 0
        genuine.stop()
        before = fingerprint(genuine.data_dir)
        second = NodeProcess(data_dir=genuine.data_dir)
        try:
            reason = refused(second)
        finally:
            second.close()
        assert "another etcd" in reason
        assert str(genuine.data_dir) in reason
        assert fingerprint(genuine.data_dir) == before
        genuine.start()
        assert etcdctl(genuine.endpoint, "get", "a", "--print-value-only").stdout == b"1\n"
    finally:
        genuine.close()


def test_a_port_in_use_is_refused_by_name(node: NodeProcess) -> None:
    node.start()
    second = NodeProcess()
    second.port = node.port
    try:
        reason = refused(second)
    finally:
        second.close()
    assert f"--listen-client-urls={node.client_url}" in reason
    assert "address already in use" in reason


def test_a_log_that_is_none_is_refused(node: NodeProcess) -> None:
    node.start()
    node.kill()
    path = log_file(node)
    path.write_bytes(b"this is not a write-ahead log\n" * 100)
    assert str(path) in refused(node)
