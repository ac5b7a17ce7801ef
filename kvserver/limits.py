"""Every bound of the server in one place, each with the reason for its size.

A queue, buffer, retry or request without a bound is a way to lose the process; a bound nobody can find is a riddle for
its operator. Units stand last in the names. Values that an operator may change are defaults of ``kvserver.config``.
"""

from __future__ import annotations

REQUEST_BYTES_MAX = 1_572_864
"""Largest client request, 1.5 MiB: etcd's default for ``--max-request-bytes``; a Raft entry has to fit one append."""

TXN_OPERATIONS_MAX = 128
"""Operations in one list of a txn: etcd's default for ``--max-txn-ops``."""
