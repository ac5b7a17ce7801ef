"""Multi-version key-value store: revisions, history, compaction, hashes, snapshots, watchers. Pure: no IO, no clock.

``Store`` keeps the versions, ``requests`` and ``txn`` carry out the KV service's requests on it and answer them as
bytes, ``WatchableStore`` announces changes. Knows neither Raft nor storage nor the node.
"""

from kvserver.mvcc.ranges import RangeOptions, RangeResult
from kvserver.mvcc.snapshot import SnapshotFormatError
from kvserver.mvcc.store import Leases, Store
from kvserver.mvcc.watch import WatchableStore, WatchError, WatchSink, WatchStream

__all__ = [
    "Leases",
    "RangeOptions",
    "RangeResult",
    "SnapshotFormatError",
    "Store",
    "WatchError",
    "WatchSink",
    "WatchStream",
    "WatchableStore",
]
