"""Every bound of the server in one place, each with the reason for its size.

A queue, buffer, retry or request without a bound is a way to lose the process; a bound nobody can find is a riddle for
its operator. Units stand last in the names. Values that an operator may change are defaults of ``kvserver.config``.
"""

from __future__ import annotations

REQUEST_BYTES_MAX = 1_572_864
"""Largest client request, 1.5 MiB: etcd's default for ``--max-request-bytes``; a Raft entry has to fit one append."""

TXN_OPERATIONS_MAX = 128
"""Operations in one list of a txn: etcd's default for ``--max-txn-ops``."""

WAL_SEGMENT_BYTES = 64 * 1024 * 1024
"""Size of a preallocated WAL segment: large enough that a rollover is rare, small enough that space comes back soon."""

WAL_ZERO_AHEAD_BYTES = 1024 * 1024
"""Zeros written ahead of the log's end together with a batch: a block that was written before needs no journal commit
when it is written again, which halves the time of a sync of 60 KB. More would make the one batch that pays for it slow."""

WAL_FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Raw bytes of one WAL frame, so of one record: bounds the memory that reading a log may take. Larger batches are
split into several frames."""

WAL_COMPRESS_BYTES_MIN = 512
"""Records below this are stored raw: compressing 300 bytes saves no disk block. At most one sector (512), because a raw
payload must never hold a whole sector of zeros; see ``kvserver.storage.segment``."""

WAL_READ_BYTES = 1024 * 1024
"""Bytes read at a time when a log is scanned."""

SNAPSHOT_CHUNK_BYTES_MAX = 4 * 1024 * 1024
"""Largest chunk of a snapshot file; the memory that writing or reading one may take, however large the snapshot."""

SNAPSHOT_SYNC_BYTES = 8 * 1024 * 1024
"""A snapshot being written is synced whenever so much is dirty, so that its flush does not delay the log's syncs."""

SNAPSHOTS_KEPT = 2
"""Snapshots kept: the newest and one to fall back on."""
