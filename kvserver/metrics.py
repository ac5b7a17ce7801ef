"""The node's metrics under the names of etcd's, so that dashboards made for etcd work.

Nothing is updated while requests run: the parts keep plain counters of their own, and a scrape asks *sources*,
functions that answer a mapping from metric name to value, for what the counters are. A value is a number, a mapping
from label values to numbers, or a :class:`Histogram`. The table below says of each name its type, its labels and its
help; a name that no source answers is not exported.

Not here: what is counted, and where.
"""

from __future__ import annotations

import os
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvserver.version import ETCD_CLUSTER_VERSION, ETCD_VERSION, KVSERVER_VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DISK_SECONDS = tuple(0.001 * 2**power for power in range(14))
"""Bounds of the histograms of disk operations, 1 ms to 8 s: etcd's."""


class Histogram:
    """Counts of observations below each bound; plain enough to be updated on warm paths.

    >>> histogram = Histogram((0.1, 1.0))
    >>> for value in (0.05, 0.1, 0.7, 3.0):
    ...     histogram.observe(value)
    >>> histogram.counts, histogram.total
    ([2, 1, 1], 3.85)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DISK_SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Answer the cumulated counts by upper bound."""
        cumulated, answer = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            cumulated += count
            answer.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(cumulated)))
        return answer


Value = float | Histogram | Mapping[tuple[str, ...], float]
Source = Callable[[], Mapping[str, Value]]


@dataclass(frozen=True, slots=True)
class Definition:
    """What is known of a metric before it has a value."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


def _table(text: str) -> dict[str, Definition]:
    """Read lines of ``name{labels} kind help``."""
    definitions = {}
    for line in text.strip().splitlines():
        name, kind, help_text = line.split(" ", 2)
        name, _, labels = name.partition("{")
        definitions[name] = Definition(kind, help_text, tuple(filter(None, labels.rstrip("}").split(","))))
    return definitions


DEFINITIONS = _table("""
etcd_cluster_version{cluster_version} gauge Which version is running. 1 for 'cluster_version' label with current cluster version
etcd_server_version{server_version} gauge Which version is running. 1 for 'server_version' label with current version.
etcd_server_id{server_id} gauge Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.
etcd_server_has_leader gauge Whether or not a leader exists. 1 is existence, 0 is not.
etcd_server_is_leader gauge Whether or not this member is a leader. 1 if is, 0 otherwise.
etcd_server_is_learner gauge Whether or not this member is a learner. 1 if is, 0 otherwise.
etcd_server_leader_changes_seen_total counter The number of leader changes seen.
etcd_server_proposals_committed_total gauge The total number of consensus proposals committed.
etcd_server_proposals_applied_total gauge The total number of consensus proposals applied.
etcd_server_proposals_pending gauge The current number of pending proposals to commit.
etcd_server_proposals_failed_total counter The total number of failed proposals seen.
etcd_server_slow_apply_total counter The total number of slow apply requests (likely overloaded from slow disk).
etcd_server_read_indexes_failed_total counter The total number of failed read indexes seen.
etcd_server_quota_backend_bytes gauge Current backend storage quota size in bytes.
etcd_server_health_success gauge The total number of successful health checks
etcd_server_health_failures gauge The total number of failed health checks
etcd_disk_wal_fsync_duration_seconds histogram The latency distributions of fsync called by WAL.
etcd_disk_wal_write_bytes_total gauge Total number of bytes written in WAL.
etcd_network_client_grpc_sent_bytes_total counter The total number of bytes sent to grpc clients.
etcd_network_client_grpc_received_bytes_total counter The total number of bytes received from grpc clients.
etcd_mvcc_db_total_size_in_bytes gauge Total size of the underlying database physically allocated in bytes.
etcd_mvcc_db_total_size_in_use_in_bytes gauge Total size of the underlying database logically in use in bytes.
etcd_mvcc_put_total counter Total number of puts seen by this member.
etcd_mvcc_delete_total counter Total number of deletes seen by this member.
etcd_mvcc_txn_total counter Total number of txns seen by this member.
etcd_mvcc_keys_total gauge Total number of keys.
etcd_debugging_mvcc_keys_total gauge Total number of keys.
etcd_debugging_mvcc_current_revision gauge The current revision of store.
etcd_debugging_mvcc_compact_revision gauge The revision of the last compaction in store.
etcd_debugging_mvcc_watch_stream_total gauge Total number of watch streams.
etcd_debugging_mvcc_watcher_total gauge Total number of watchers.
etcd_debugging_mvcc_slow_watcher_total gauge Total number of unsynced slow watchers.
etcd_debugging_snap_save_total_duration_seconds histogram The total latency distributions of save called by snapshot.
etcd_debugging_lease_granted_total counter The total number of granted leases.
etcd_debugging_lease_revoked_total counter The total number of revoked leases.
etcd_debugging_lease_renewed_total counter The number of renewed leases seen by the leader.
etcd_debugging_server_lease_expired_total counter The total number of expired leases.
grpc_server_started_total{grpc_type,grpc_service,grpc_method} counter Total number of RPCs started on the server.
grpc_server_handled_total{grpc_type,grpc_service,grpc_method,grpc_code} counter Total number of RPCs completed on the server, regardless of success or failure.
grpc_server_msg_received_total{grpc_type,grpc_service,grpc_method} counter Total number of RPC stream messages received on the server.
grpc_server_msg_sent_total{grpc_type,grpc_service,grpc_method} counter Total number of gRPC stream messages sent by the server.
os_fd_limit gauge The file descriptor limit.
os_fd_used gauge The number of used file descriptors.
kvserver_info{version,python_version} gauge 1 for the labels of this kvserver.
kvserver_client_connections{protocol} gauge Open client connections by protocol.
kvserver_refused_connections_total counter Connections closed because they spoke neither gRPC nor HTTP.
kvserver_http_requests_total counter HTTP requests read, gateway and pages.
kvserver_loop_stall_seconds histogram Delays of the event loop beyond its schedule.
kvserver_gc_pause_seconds histogram Pauses of the cyclic garbage collector.
kvserver_wal_batch_entries histogram Entries written with one fsync.
""")  # noqa: E501 - one metric a line


class Metrics(Collector):
    """The registry of one server.

    Several servers of one process have one each; the process's own numbers appear in all of them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._sources: list[Source] = [_constants, _descriptors]
        self.registry.register(self)

    def add_source(self, source: Source) -> None:
        """Ask ``source`` at each scrape; of two sources that answer a name the later one counts."""
        self._sources.append(source)

    def collect(self) -> Iterator[Metric]:
        """Answer all families; called by the registry."""
        values: dict[str, Value] = {}
        for source in self._sources:
            values.update(source())
        for name in sorted(values):
            yield _family(name, DEFINITIONS.get(name, Definition("gauge", name)), values[name])

    def describe(self) -> list[Metric]:
        """Answer nothing, so that registering does not ask the sources."""
        return []

    def render(self) -> bytes:
        """Answer the text of a scrape."""
        return generate_latest(self.registry)


def _family(name: str, definition: Definition, value: Value) -> Metric:
    if isinstance(value, Histogram):
        return HistogramMetricFamily(name, definition.help, buckets=value.buckets(), sum_value=value.total)
    kind = definition.kind
    family = Metric(name.removesuffix("_total") if kind == "counter" else name, definition.help, kind)
    if isinstance(value, Mapping):
        for labels, number in value.items():
            family.add_sample(name, dict(zip(definition.labels, labels, strict=True)), number)
    else:
        family.add_sample(name, {}, value)
    return family


def _constants() -> Mapping[str, Value]:
    return {
        "etcd_cluster_version": {(ETCD_CLUSTER_VERSION.rpartition(".")[0],): 1},
        "etcd_server_version": {(ETCD_VERSION,): 1},
        "kvserver_info": {(KVSERVER_VERSION, platform.python_version()): 1},
    }


def _descriptors() -> Mapping[str, Value]:
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    values: dict[str, Value] = {"os_fd_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
    try:
        values["os_fd_used"] = len(os.listdir("/proc/self/fd"))
    except OSError:
        pass
    return values
