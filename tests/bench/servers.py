"""The two servers under comparison, each with a directory of its own on one disk, and what can be read off them."""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path

import grpc

from kvserver.proto import rpc_pb2
from tests.support.etcd import GenuineEtcd
from tests.support.processes import NodeProcess, ServerProcess

KINDS: dict[str, type[ServerProcess]] = {"kvserver": NodeProcess, "etcd": GenuineEtcd}
"""Ours first: ratios are ours to theirs."""

QUOTA_BYTES = 8 * 1024**3
"""More than a run writes: the default of 2 GiB would end a long one with an alarm."""

CALL_SECONDS_MAX = 600.0


class BenchServer:
    """One of the two, started."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.process = KINDS[kind](data_dir=directory, args=[f"--quota-backend-bytes={QUOTA_BYTES}"])
        self.start()

    @property
    def url(self) -> str:
        """``http://host:port``."""
        return self.process.client_url

    @property
    def endpoint(self) -> str:
        """``host:port``."""
        return self.process.endpoint

    def start(self, seconds_max: float = 300.0) -> None:
        """Start the process and wait until it serves."""
        self.process.start(wait=False)
        self.process.wait_ready(seconds_max)
        self.channel = grpc.insecure_channel(self.endpoint, options=[("grpc.max_receive_message_length", -1)])

    def call(self, path: str, request: bytes) -> bytes:
        """Make one unary call.

        Raises:
            grpc.RpcError: the server refused.
        """
        answer: bytes = self.channel.unary_unary(path)(request, timeout=CALL_SECONDS_MAX)
        return answer

    def revision(self) -> int:
        """The store's current revision."""
        request = rpc_pb2.RangeRequest(key=b"\0", serializable=True)
        answer = self.call("/etcdserverpb.KV/Range", request.SerializeToString())
        return int(rpc_pb2.RangeResponse.FromString(answer).header.revision)

    def count(self) -> int:
        """How many keys there are."""
        request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        answer = self.call("/etcdserverpb.KV/Range", request.SerializeToString())
        return int(rpc_pb2.RangeResponse.FromString(answer).count)

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def disk_bytes(self) -> int:
        """Blocks that its directory occupies."""
        return sum(path.stat().st_blocks * 512 for path in self.directory.rglob("*") if path.is_file())

    def metric_buckets(self, name: str) -> dict[float, float]:
        """The cumulative buckets of a histogram of ``/metrics``; empty if there is none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            text = response.read().decode()
        found = re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', text, re.MULTILINE)
        return {float(bound): float(count) for bound, count in found}

    def close(self) -> None:
        """End it and remove its directory."""
        self.channel.close()
        self.process.stop()
        self.process.close()
        shutil.rmtree(self.directory, ignore_errors=True)
