"""The client: reads, writes, txns, watches and leases over several endpoints, below a namespace.

A client belongs to one event loop. Failures follow the rule of :mod:`recipes.client.channel`: what surely did not
happen, or only reads, is tried again until the deadline; a write of unknown outcome raises
:class:`~recipes.errors.OutcomeUnknownError` and is never repeated behind the caller's back.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from kvserver.proto import rpc_pb2
from recipes.client.channel import Channel, ChannelConfig
from recipes.client.endpoints import Endpoint
from recipes.client.keepalive import KeepaliveHub, background_hub
from recipes.client.keys import resolve, to_bytes
from recipes.client.rpc import Rpc
from recipes.client.txn import Compare, Delete, Get, Operation, SortBy, Txn
from recipes.client.types import (
    DeleteResult,
    KeyValue,
    LeaseLike,
    PutResult,
    RangeResult,
    TxnResult,
    lease_id_of,
)
from recipes.client.watch import Watcher, WatchHub, WatchSpec
from recipes.errors import LeaseNotFoundError

PAGE_KEYS = 1000
"""Keys a page of :meth:`Client.scan`."""


class _Core:
    """What a client and its namespaced views share."""

    def __init__(self, config: ChannelConfig, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        self.channel = Channel(config, rng=rng)
        self.rpc = Rpc(self.channel)
        self.watches = WatchHub(self.channel, rng=rng)
        self._loop_keepalives: KeepaliveHub | None = None
        self._thread_keepalives: KeepaliveHub | None = None

    def keepalives(self, *, own_thread: bool) -> KeepaliveHub:
        """Answer who keeps leases alive: on the process's background loop, or on the application's."""
        if own_thread:
            if self._thread_keepalives is None:
                self._thread_keepalives = background_hub(self.config)
            return self._thread_keepalives
        if self._loop_keepalives is None:
            self._loop_keepalives = KeepaliveHub(self.config)
        return self._loop_keepalives

    async def close(self) -> None:
        for hub in (self._loop_keepalives, self._thread_keepalives):
            if hub is not None:
                await hub.close()
        await self.watches.close()
        await self.channel.close()


class Client:
    """A client of an etcd v3 cluster.

    Args:
        endpoints: ``"h:p"``, ``"h1:p,h2:p"``, ``"http://h:p"``, or a sequence of these.
        namespace: Put in front of every key, and taken off in results.
        timeout: Deadline in seconds of a call that names none.
        dial_timeout: How long connecting to one endpoint may take, in seconds.
        tls: TLS context; without one, addresses with ``https://`` use the system's trust.
        user: Name to authenticate with.
        password: The user's password.

    It connects at the first call. Use it as an async context manager, or ``await close()`` it.

    ::

        async with Client("127.0.0.1:2379") as kv:
            await kv.put("k", "v")
            item = await kv.get("k")
            print(item.text)
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] = "127.0.0.1:2379",
        *,
        namespace: str | bytes = "",
        timeout: float = 5.0,
        dial_timeout: float = 2.0,
        tls: ssl.SSLContext | None = None,
        user: str | None = None,
        password: str = "",
        _core: _Core | None = None,
    ) -> None:
        if _core is None:
            config = ChannelConfig.parse(
                endpoints, timeout=timeout, dial_timeout=dial_timeout, tls=tls, user=user, password=password
            )
            _core = _Core(config, random.Random())
        self._core = _core
        self._prefix = to_bytes(namespace)
        self._cut = len(self._prefix)
        self._channel = _core.channel
        self.rpc = _core.rpc
        self._range = _core.rpc.kv.range
        self._put = _core.rpc.kv.put

    @property
    def namespace(self) -> bytes:
        """What stands in front of every key."""
        return self._prefix

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers, in the order in which they are tried."""
        return self._core.config.endpoints

    def namespaced(self, prefix: str | bytes) -> Client:
        """Answer a client below ``prefix`` (below this one's namespace) that shares this one's connection.

        Closing either closes both.
        """
        return Client(namespace=self._prefix + to_bytes(prefix), _core=self._core)

    # keys

    async def get(
        self, key: str | bytes, *, revision: int = 0, serializable: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        """Read one key.

        Args:
            key: The key.
            revision: Read as of this revision, 0 for the newest.
            serializable: Let one member answer from what it has: faster, perhaps stale.
            timeout: Deadline in seconds.

        Returns:
            The key-value, None when there is no such key.

        Raises:
            CompactedError: ``revision`` is too old.
            ClientError: the call failed.
        """
        raw = self._prefix + to_bytes(key)
        if not raw:
            raise ValueError("the key is empty: give a key, or use range(prefix=True) for all keys")
        request = rpc_pb2.RangeRequest(key=raw, revision=revision, serializable=serializable)
        response = await self._range(request, timeout=timeout)
        return KeyValue(response.kvs[0], self._cut) if response.kvs else None

    async def range(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        from_key: bool = False,
        limit: int = 0,
        revision: int = 0,
        sort_by: SortBy | None = None,
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read a range of keys in one answer; the arguments are those of :class:`~recipes.client.txn.Get`.

        For big ranges use :meth:`scan`.
        """
        get = Get(
            key,
            prefix,
            range_end,
            from_key,
            limit,
            revision,
            sort_by,
            descending,
            keys_only,
            count_only,
            serializable,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        )
        return RangeResult(await self._range(get.message(self._prefix), timeout=timeout), self._cut)

    async def scan(
        self, prefix: str | bytes, *, revision: int = 0, page_keys: int = PAGE_KEYS, timeout: float | None = None
    ) -> AsyncIterator[KeyValue]:
        """Iterate over all keys below a prefix in key order, as of one revision, a page a call.

        Args:
            prefix: What the keys begin with; empty for all keys of the namespace.
            revision: As of this revision; the newest when 0.
            page_keys: Keys a page.
            timeout: Deadline of each page in seconds.

        Raises:
            CompactedError: the revision was compacted meanwhile.
        """
        key, end = resolve(self._prefix, prefix, prefix=True)
        while True:
            request = rpc_pb2.RangeRequest(key=key, range_end=end, limit=page_keys, revision=revision)
            response = await self._range(request, timeout=timeout)
            revision = revision or response.header.revision
            for raw in response.kvs:
                yield KeyValue(raw, self._cut)
            if not response.more:
                return
            key = response.kvs[-1].key + b"\0"

    async def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        lease: LeaseLike | None = None,
        previous: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """Write one key.

        Args:
            key: The key.
            value: Its new value.
            lease: What keeps the key alive: a lease id or a session; None for a key that stays.
            previous: Answer what was there before.
            timeout: Deadline in seconds.

        Raises:
            LeaseNotFoundError: the lease is gone.
            OutcomeUnknownError: the answer was lost; the write may have happened.
        """
        raw = self._prefix + to_bytes(key)
        if not raw:
            raise ValueError("the key is empty")
        request = rpc_pb2.PutRequest(key=raw, value=to_bytes(value), prev_kv=previous)
        if lease is not None:
            request.lease = lease_id_of(lease)
        return PutResult(await self._put(request, timeout=timeout), self._cut)

    async def delete(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        from_key: bool = False,
        previous: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key or a range; the arguments are those of :class:`~recipes.client.txn.Delete`.

        Raises:
            OutcomeUnknownError: the answer was lost; the deletion may have happened.
        """
        request = Delete(key, prefix, range_end, from_key, previous).message(self._prefix)
        return DeleteResult(await self.rpc.kv.delete_range(request, timeout=timeout), self._cut)

    async def txn(
        self,
        when: Sequence[Compare] = (),
        then: Sequence[Operation] = (),
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """Check conditions and act on the answer, as one step.

        Args:
            when: Conditions; all must hold. None means "always".
            then: What runs when they hold.
            otherwise: What runs when not.
            timeout: Deadline in seconds.

        Returns:
            Whether they held (the result is true then), and the result of each operation.

        Raises:
            OutcomeUnknownError: the answer was lost, and the txn could have written.

        ::

            taken = await kv.txn(when=[Version("k") == 0], then=[Put("k", "v")], otherwise=[Get("k")])
            if not taken:
                print(taken.range(0).first)
        """
        txn = Txn(when, then, otherwise)
        response = await self.rpc.kv.txn(txn.message(self._prefix), timeout=timeout, read_only=txn.read_only)
        return TxnResult(response, self._cut)

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> None:
        """Forget history below ``revision``; for the whole store, whatever the namespace.

        Args:
            revision: The oldest revision that stays readable.
            physical: Wait until the space is free.
            timeout: Deadline in seconds.

        Raises:
            CompactedError: it was compacted to there already.
        """
        await self.rpc.kv.compact(rpc_pb2.CompactionRequest(revision=revision, physical=physical), timeout=timeout)

    # watches

    def watch(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        from_key: bool = False,
        start_revision: int = 0,
        previous: bool = False,
        puts: bool = True,
        deletes: bool = True,
        progress: bool = False,
    ) -> Watcher:
        """Follow the changes of a key or a range.

        The watch survives lost connections and failovers: it resumes after the last event it delivered, with no gap and
        nothing twice.

        Args:
            key: The key, prefix or start of the range.
            prefix: All keys that begin with ``key``.
            range_end: The first key that no longer belongs to the range.
            from_key: All keys from ``key`` on.
            start_revision: The first revision wanted; 0 for changes from now on.
            previous: Carry in each event what was there before.
            puts: Tell writes.
            deletes: Tell deletions.
            progress: Let an idle watch keep up with the store's revision, so that compaction does not catch it.

        Returns:
            An async iterator of :class:`~recipes.client.types.WatchEvent`. Reading it raises
            :class:`~recipes.errors.CompactedError` when history it needs was compacted.
        """
        start, end = resolve(self._prefix, key, prefix=prefix, range_end=range_end, from_key=from_key)
        spec = WatchSpec(start, end, previous, puts, deletes, progress)
        return Watcher(self._core.watches, spec, start_revision, self._cut)

    # leases

    async def grant_lease(self, ttl: int, *, lease_id: int = 0, timeout: float | None = None) -> int:
        """Make a lease that nobody keeps alive; see :class:`~recipes.session.Session` for one that is.

        Args:
            ttl: Seconds it lives.
            lease_id: Its id; the server chooses one when 0.
            timeout: Deadline in seconds.

        Returns:
            The lease's id.
        """
        response = await self.rpc.lease.grant(rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease_id), timeout=timeout)
        return response.ID

    async def revoke_lease(self, lease: LeaseLike, *, timeout: float | None = None) -> None:
        """End a lease now; its keys are deleted.

        Raises:
            LeaseNotFoundError: there is no such lease (any more).
        """
        await self.rpc.lease.revoke(rpc_pb2.LeaseRevokeRequest(ID=lease_id_of(lease)), timeout=timeout)

    async def keep_lease_alive(self, lease: LeaseLike, *, timeout: float | None = None) -> int:
        """Renew a lease once.

        Returns:
            The seconds it lives from now.

        Raises:
            LeaseNotFoundError: the lease is gone.
        """
        async with asyncio.timeout(self._core.config.timeout_seconds if timeout is None else timeout):
            stream = await self.rpc.lease_keepalive()
            try:
                stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id_of(lease)))
                response = await stream.recv()
            finally:
                stream.cancel()
        if response is None or response.TTL <= 0:
            raise LeaseNotFoundError
        return response.TTL

    async def lease_ttl(self, lease: LeaseLike, *, timeout: float | None = None) -> int:
        """Answer the seconds a lease has left.

        Raises:
            LeaseNotFoundError: the lease is gone.
        """
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id_of(lease))
        response = await self.rpc.lease.time_to_live(request, timeout=timeout)
        if response.TTL < 0:
            raise LeaseNotFoundError
        return response.TTL

    async def leases(self, *, timeout: float | None = None) -> tuple[int, ...]:
        """Answer the ids of all leases of the store."""
        response = await self.rpc.lease.leases(rpc_pb2.LeaseLeasesRequest(), timeout=timeout)
        return tuple(lease.ID for lease in response.leases)

    # life

    async def close(self) -> None:
        """Close the connection, end the watches; sessions that are still open are left to expire."""
        await self._core.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Client({', '.join(map(str, self.endpoints))!r}, namespace={self._prefix!r})"
