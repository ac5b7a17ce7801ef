"""What a Raft log entry of the node can hold.

An entry's data is one byte of kind and then the request exactly as the client sent it: nothing is encoded twice.
The numbers stand on disk and between members: never reuse or renumber one.
"""

from __future__ import annotations

PUT = b"\x01"
DELETE_RANGE = b"\x02"
TXN = b"\x03"
COMPACT = b"\x04"
LEASE_GRANT = b"\x05"
LEASE_REVOKE = b"\x06"
ALARM = b"\x07"
MEMBER_PUBLISH = b"\x08"
"""A started member tells its name and client URLs: an etcdserverpb.Member."""
CLUSTER_VERSION = b"\x09"
"""The version that all members can speak: UTF-8 text."""
