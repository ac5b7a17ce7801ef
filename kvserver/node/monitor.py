"""Watches what nobody may do for long: hold the loop, or pause for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping

from kvserver.metrics import Histogram, Value
from kvserver.node.engine import Engine
from kvserver.runtime import Clock

STALL_BOUNDS_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Monitor:
    """Histograms of loop stalls, collector pauses, log writes and their batches, and the worst stall seen."""

    INTERVAL_SECONDS = 0.02

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._gc_started = 0.0
        self.stalls = Histogram(STALL_BOUNDS_SECONDS)
        self.worst_stall_seconds = 0.0
        self.gc_pauses = Histogram(STALL_BOUNDS_SECONDS)
        self.fsync_seconds = Histogram()
        self.batch_entries = Histogram(BATCH_BOUNDS)
        self.snapshot_seconds = Histogram()
        self.wal_bytes = 0
        self.slow_applies = 0

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._schedule()
        gc.callbacks.append(self._collector)

    def stop(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            gc.callbacks.remove(self._collector)

    def _schedule(self) -> None:
        self._due = self._clock.monotonic() + self.INTERVAL_SECONDS
        self._handle = asyncio.get_running_loop().call_later(self.INTERVAL_SECONDS, self._check)

    def _check(self) -> None:
        late = max(0.0, self._clock.monotonic() - self._due)
        self.stalls.observe(late)
        self.worst_stall_seconds = max(late, self.worst_stall_seconds)
        self._schedule()

    def _collector(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._gc_started = self._clock.monotonic()
        else:
            self.gc_pauses.observe(self._clock.monotonic() - self._gc_started)


def node_samples(engine: Engine, monitor: Monitor, quota_bytes: int) -> Callable[[], Mapping[str, Value]]:
    """Make the source of the node's metrics: its counters, read at each scrape."""

    def samples() -> Mapping[str, Value]:
        machine = engine.machine
        store = machine.store
        watchable = machine.watchable
        raft = engine.raft
        return {
            "etcd_server_id": {(f"{engine.member_id:x}",): 1},
            "etcd_server_has_leader": 1 if raft.leader_id else 0,
            "etcd_server_is_leader": 1 if engine.is_leader else 0,
            "etcd_server_is_learner": 0,
            "etcd_server_leader_changes_seen_total": engine.leader_changes,
            "etcd_server_proposals_committed_total": raft.commit_index,
            "etcd_server_proposals_applied_total": machine.applied_index,
            "etcd_server_proposals_pending": engine.pending_count,
            "etcd_server_proposals_failed_total": engine.proposals_failed,
            "etcd_server_slow_apply_total": monitor.slow_applies,
            "etcd_server_read_indexes_failed_total": engine.reads_failed,
            "etcd_server_quota_backend_bytes": quota_bytes,
            "etcd_disk_wal_fsync_duration_seconds": monitor.fsync_seconds,
            "etcd_disk_wal_write_bytes_total": monitor.wal_bytes,
            "etcd_debugging_snap_save_total_duration_seconds": monitor.snapshot_seconds,
            "etcd_mvcc_db_total_size_in_bytes": store.size_bytes,
            "etcd_mvcc_db_total_size_in_use_in_bytes": store.size_bytes,
            "etcd_mvcc_keys_total": len(store),
            "etcd_debugging_mvcc_keys_total": len(store),
            "etcd_mvcc_put_total": machine.puts,
            "etcd_mvcc_delete_total": machine.deletes,
            "etcd_mvcc_txn_total": machine.txns,
            "etcd_debugging_mvcc_current_revision": store.revision,
            "etcd_debugging_mvcc_compact_revision": store.compact_revision,
            "etcd_debugging_mvcc_watch_stream_total": len(watchable.streams),
            "etcd_debugging_mvcc_watcher_total": watchable.watcher_count,
            "etcd_debugging_mvcc_slow_watcher_total": watchable.unsynced_count,
            "etcd_debugging_lease_granted_total": machine.leases_granted,
            "etcd_debugging_lease_revoked_total": machine.leases_revoked,
            "etcd_debugging_lease_renewed_total": engine.leases_renewed,
            "etcd_debugging_server_lease_expired_total": engine.leases_expired,
            "kvserver_loop_stall_seconds": monitor.stalls,
            "kvserver_gc_pause_seconds": monitor.gc_pauses,
            "kvserver_wal_batch_entries": monitor.batch_entries,
        }

    return samples
