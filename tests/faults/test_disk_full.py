"""A full disk: the node stops acknowledging and ends, and comes back with all it acknowledged when there is space."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

import grpc
import pytest

from kvserver.proto.rpc_pb2 import PutRequest, RangeRequest
from tests.faults.campaign import end_of
from tests.faults.client import Api
from tests.support.processes import NodeProcess

DISK_BYTES = 140 * 1024 * 1024
"""Two log segments of 64 MiB fit, a third one does not."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        reason = f"NOT TESTED: a full disk; mounting a small file system needs root: {mounted.stderr.decode().strip()}"
        warnings.warn(pytest.PytestWarning(reason), stacklevel=1)
        pytest.skip(reason)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.filterwarnings("default:NOT TESTED")
def test_a_full_disk_ends_the_node_and_space_brings_it_back(small_disk: Path) -> None:
    filler = small_disk / "filler"
    node = NodeProcess(data_dir=small_disk / "node")
    acknowledged: dict[bytes, bytes] = {}
    try:
        node.start()
        filler.write_bytes(b"x" * (DISK_BYTES - used_bytes(small_disk) - 200_000))
        api = Api(node.endpoint)
        error = None
        rng = Random(1)
        for number in range(300):
            key = b"key %d" % number
            value = rng.randbytes(500_000)
            try:
                api.put(PutRequest(key=key, value=value))
            except grpc.RpcError as failed:
                error = failed
                break
            acknowledged[key] = value
        api.close()
        assert error is not None, "the disk was never full"
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert end_of(node) == 1
        last = json.loads(node.log_path.read_text().splitlines()[-1])
        assert last["level"] == "fatal"
        assert "No space left" in last["error"]
        assert str(node.data_dir) in last["error"]
        assert "Traceback" not in node.log_path.read_text()
        assert acknowledged

        filler.unlink()
        node.start()
        api = Api(node.endpoint)
        answer = api.range(RangeRequest(key=b"\0", range_end=b"\0"))
        found = {kv.key: kv.value for kv in answer.kvs}
        assert acknowledged.items() <= found.items()
        assert len(found) <= len(acknowledged) + 1
        api.put(PutRequest(key=b"after", value=b"x"))
        api.close()
    finally:
        node.close()


def used_bytes(path: Path) -> int:
    """The bytes in use on a file system."""
    answer = subprocess.run(["df", "-B1", "--output=used", str(path)], capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[-1])
