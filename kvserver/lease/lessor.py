"""Lessor: leases, the keys that hang on them, and when they run out.

Two kinds of state:
- replicated: ids, granted TTLs and attached keys. Changed by applied entries alone, equal on every member.
- the leader's: when each lease runs out, by the leader's clock. A member that does not lead (*demoted*) has no expiry
  times; on promotion every lease gets its full TTL and an extension, since the old leader may have renewed it last.

``expired`` only names leases; they end when their revoke has been agreed and applied. Time arrives as an argument, in
seconds of any monotonic clock.

Invariants: a key hangs on at most one lease; an id is positive; order of iteration never depends on hashes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from kvserver import errors
from kvserver.limits import LEASE_TTL_MAX_SECONDS


class Lease:
    """A lease: its id, its TTL in seconds, its keys."""

    __slots__ = ("expiry", "keys", "lease_id", "queued", "ttl")

    def __init__(self, lease_id: int, ttl: int) -> None:
        self.lease_id = lease_id
        self.ttl = ttl
        self.keys: dict[bytes, None] = {}
        self.expiry: float | None = None
        self.queued = 0.0  # time of the one queue item that counts; at or before the expiry


class TimeToLive(NamedTuple):
    """What is left of a lease in seconds, cut off as etcd does, its TTL, and its keys in order."""

    remaining: int
    granted: int
    keys: list[bytes]


def _by_expiry(lease: Lease) -> tuple[float, int]:
    return inf if lease.expiry is None else lease.expiry, lease.lease_id


class Lessor:
    """The leases of a member."""

    def __init__(self, minimum_ttl: int = 1) -> None:
        """Make a lessor without leases.

        Args:
            minimum_ttl: shortest TTL in seconds; shorter grants get it. Must be the same on every member.
        """
        self.minimum_ttl = minimum_ttl
        self._leases: dict[int, Lease] = {}
        self._promoted = False
        # (time to look at it, id). Renewing leaves the item where it is: it is put back when its time comes, so a
        # renewal costs no more than an assignment and the queue is as long as there are leases.
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._leases)

    # -- replicated state -----------------------------------------------------------------------------------------

    def check_grant(self, lease_id: int, ttl: int) -> None:
        """Check a grant.

        Raises:
            LeaseTtlTooLargeError: the TTL is above the protocol's maximum.
            LeaseNotFoundError: the id is 0.
            LeaseExistsError: the id is taken.
        """
        if lease_id == 0:
            raise errors.LeaseNotFoundError
        if ttl > LEASE_TTL_MAX_SECONDS:
            raise errors.LeaseTtlTooLargeError
        if lease_id in self._leases:
            raise errors.LeaseExistsError

    def grant(self, lease_id: int, ttl: int, now: float = 0.0) -> Lease:
        """Grant a lease.

        Args:
            lease_id: its id, not 0; whoever proposes the grant chooses it.
            ttl: seconds it lives without renewal; raised to the minimum.
            now: the time; looked at only while promoted.

        Raises:
            LeaseNotFoundError, LeaseTtlTooLargeError, LeaseExistsError: as :meth:`check_grant`.
        """
        self.check_grant(lease_id, ttl)
        lease = self._leases[lease_id] = Lease(lease_id, max(ttl, self.minimum_ttl))
        if self._promoted:
            lease.expiry = now + lease.ttl
            self._queue(lease, lease.expiry)
        return lease

    def revoke(self, lease_id: int) -> list[bytes]:
        """End a lease; answers the keys to delete, in order.

        Raises:
            LeaseNotFoundError: there is no such lease.
        """
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise errors.LeaseNotFoundError
        return sorted(lease.keys)

    def exists(self, lease_id: int) -> bool:
        """Answer whether there is such a lease."""
        return lease_id in self._leases

    def attach(self, lease_id: int, key: bytes) -> None:
        """Hang a key on a lease; the store tells it when it writes the key."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.keys[key] = None

    def detach(self, lease_id: int, key: bytes) -> None:
        """Take a key off a lease; nothing happens if the lease has ended."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.keys.pop(key, None)

    def leases(self) -> list[int]:
        """Answer the ids of all leases, those that run out first first."""
        return [lease.lease_id for lease in sorted(self._leases.values(), key=_by_expiry)]

    def snapshot(self) -> list[tuple[int, int]]:
        """Answer (id, TTL) of all leases in order of ids; keys are found again in the store."""
        return sorted((lease.lease_id, lease.ttl) for lease in self._leases.values())

    def restore(self, leases: Iterable[tuple[int, int]], attachments: Iterable[tuple[int, bytes]] = ()) -> None:
        """Replace all leases by those of a snapshot.

        Args:
            leases: (id, TTL), as :meth:`snapshot` answered them.
            attachments: (id, key) of the keys that hang on leases, as ``Store.leased_keys`` finds them.
        """
        self._leases = {lease_id: Lease(lease_id, ttl) for lease_id, ttl in leases}
        self._heap.clear()
        self._promoted = False
        for lease_id, key in attachments:
            self.attach(lease_id, key)

    # -- the leader's state ---------------------------------------------------------------------------------------

    @property
    def promoted(self) -> bool:
        """Whether this member decides about expiry."""
        return self._promoted

    def promote(self, now: float, extend: float = 0.0) -> None:
        """Begin to decide about expiry: every lease gets its full TTL and ``extend`` seconds."""
        self._promoted = True
        self._heap.clear()
        for lease in self._leases.values():
            lease.expiry = lease.queued = now + lease.ttl + extend
            self._heap.append((lease.queued, lease.lease_id))
        heapq.heapify(self._heap)

    def demote(self) -> None:
        """Stop to decide about expiry."""
        self._promoted = False
        self._heap.clear()
        for lease in self._leases.values():
            lease.expiry = None

    def renew(self, lease_id: int, now: float) -> int:
        """Give a lease its full TTL again, and answer it.

        Raises:
            LeaseNotFoundError: there is no such lease, or its time is over and it waits to be revoked.
            NotLeaderError: this member does not decide about expiry.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            raise errors.LeaseNotFoundError
        if lease.expiry is None:
            raise errors.NotLeaderError
        if lease.expiry <= now:
            # Its revoke is on the way: a success now would be taken back.
            raise errors.LeaseNotFoundError
        lease.expiry = now + lease.ttl
        return lease.ttl

    def _queue(self, lease: Lease, time: float) -> None:
        lease.queued = time
        heapq.heappush(self._heap, (time, lease.lease_id))

    def expired(self, now: float, limit: int) -> list[int]:
        """Answer up to ``limit`` leases whose time is over, the longest overdue first, until they are revoked."""
        heap = self._heap
        overdue: list[Lease] = []
        while heap and heap[0][0] <= now and len(overdue) < limit:
            time, lease_id = heapq.heappop(heap)
            lease = self._leases.get(lease_id)
            if lease is None or lease.expiry is None or lease.queued != time:
                continue  # of a lease that was revoked
            if lease.expiry > time:
                self._queue(lease, lease.expiry)  # it was renewed
            else:
                lease.queued = inf  # a second item of the same time must not count
                overdue.append(lease)
        for lease in overdue:
            if lease.expiry is not None:
                self._queue(lease, lease.expiry)
        return [lease.lease_id for lease in overdue]

    def time_to_live(self, lease_id: int, now: float, keys: bool = False) -> TimeToLive:
        """Answer what is left of a lease.

        Raises:
            LeaseNotFoundError: there is no such lease.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            raise errors.LeaseNotFoundError
        remaining = lease.ttl if lease.expiry is None else int(lease.expiry - now)
        return TimeToLive(remaining, lease.ttl, sorted(lease.keys) if keys else [])
