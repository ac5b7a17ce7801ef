"""Leases: granted through the log, expired by the leader, keys attached by the store. Pure: time is an argument."""

from kvserver.lease.lessor import Lessor, TimeToLive

__all__ = ["Lessor", "TimeToLive"]
