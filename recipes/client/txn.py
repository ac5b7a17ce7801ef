"""The parts of a txn: conditions and operations.

A condition is written as Python writes it, ``Version("k") == 0``; all conditions of a txn are checked together, then
either ``then`` or ``otherwise`` runs as one step at one revision.

>>> condition = Version("k") == 0
>>> condition
Version('k') == 0
>>> ModRevision("k") > 7
ModRevision('k') > 7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from kvserver.proto import rpc_pb2
from recipes.client.keys import prefix_end, resolve, to_bytes
from recipes.client.types import LeaseLike, lease_id_of

SortBy: TypeAlias = Literal["key", "version", "create", "mod", "value"]

_TARGETS: dict[str, rpc_pb2.RangeRequest.SortTarget.ValueType] = {
    "key": rpc_pb2.RangeRequest.KEY,
    "version": rpc_pb2.RangeRequest.VERSION,
    "create": rpc_pb2.RangeRequest.CREATE,
    "mod": rpc_pb2.RangeRequest.MOD,
    "value": rpc_pb2.RangeRequest.VALUE,
}
_RESULTS: dict[str, rpc_pb2.Compare.CompareResult.ValueType] = {
    "==": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    ">": rpc_pb2.Compare.GREATER,
    "<": rpc_pb2.Compare.LESS,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a txn; made by comparing a :class:`Version`, :class:`Value` and so on.

    Attributes:
        target: What of the key is compared.
        operator: ``==``, ``!=``, ``<`` or ``>``.
        operand: What it is compared with.
        absolute: The key already has its namespace; a guard made by one client holds in the txn of another.
    """

    target: Version | CreateRevision | ModRevision | Value | Lease
    operator: str
    operand: int | bytes
    absolute: bool = False

    def encode(self, namespace: bytes) -> rpc_pb2.Compare:
        """Answer the protocol's message."""
        target = self.target
        key = to_bytes(target.key)
        if not self.absolute:
            key = namespace + key
        compare = rpc_pb2.Compare(result=_RESULTS[self.operator], target=target.TARGET, key=key)
        if target.prefix:
            compare.range_end = prefix_end(key)
        if isinstance(self.operand, bytes):
            compare.value = self.operand
        else:
            target._set_operand(compare, self.operand)
        return compare

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} is a condition for the server: give it to txn(when=[...]), it has no truth value here"
        )

    def __repr__(self) -> str:
        return f"{self.target!r} {self.operator} {self.operand!r}"


class _Target:
    """What of a key, or of every key below a prefix, is compared. A missing key counts as 0."""

    __slots__ = ("key", "prefix")

    TARGET: ClassVar[rpc_pb2.Compare.CompareTarget.ValueType]

    def __init__(self, key: str | bytes, *, prefix: bool = False) -> None:
        self.key = key
        self.prefix = prefix

    def _set_operand(self, compare: rpc_pb2.Compare, operand: int) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r}{', prefix=True' if self.prefix else ''})"

    __hash__ = None  # type: ignore[assignment]


class _IntTarget(_Target):
    __slots__ = ()

    def _compare(self, operator: str, operand: object) -> Compare:
        if not isinstance(operand, int):
            raise TypeError(f"{self!r} is compared with an int, not with {type(operand).__name__}")
        return Compare(self, operator, operand)  # type: ignore[arg-type]

    def __eq__(self, operand: object) -> Compare:  # type: ignore[override]
        return self._compare("==", operand)

    def __ne__(self, operand: object) -> Compare:  # type: ignore[override]
        return self._compare("!=", operand)

    def __gt__(self, operand: int) -> Compare:
        return self._compare(">", operand)

    def __lt__(self, operand: int) -> Compare:
        return self._compare("<", operand)


class Version(_IntTarget):
    """How many times the key was written since its creation; 0 means that it does not exist."""

    __slots__ = ()
    TARGET = rpc_pb2.Compare.VERSION

    def _set_operand(self, compare: rpc_pb2.Compare, operand: int) -> None:
        compare.version = operand


class CreateRevision(_IntTarget):
    """The revision at which the key was created; 0 when it does not exist."""

    __slots__ = ()
    TARGET = rpc_pb2.Compare.CREATE

    def _set_operand(self, compare: rpc_pb2.Compare, operand: int) -> None:
        compare.create_revision = operand


class ModRevision(_IntTarget):
    """The revision at which the key was last changed; 0 when it does not exist."""

    __slots__ = ()
    TARGET = rpc_pb2.Compare.MOD

    def _set_operand(self, compare: rpc_pb2.Compare, operand: int) -> None:
        compare.mod_revision = operand


class Lease(_IntTarget):
    """The id of the lease that keeps the key; 0 for none."""

    __slots__ = ()
    TARGET = rpc_pb2.Compare.LEASE

    def _set_operand(self, compare: rpc_pb2.Compare, operand: int) -> None:
        compare.lease = operand


class Value(_Target):
    """The key's value; a condition on the value of a missing key never holds."""

    __slots__ = ()
    TARGET = rpc_pb2.Compare.VALUE

    def __eq__(self, operand: object) -> Compare:  # type: ignore[override]
        return Compare(self, "==", to_bytes(operand))  # type: ignore[arg-type]

    def __ne__(self, operand: object) -> Compare:  # type: ignore[override]
        return Compare(self, "!=", to_bytes(operand))  # type: ignore[arg-type]

    def __gt__(self, operand: str | bytes) -> Compare:
        return Compare(self, ">", to_bytes(operand))

    def __lt__(self, operand: str | bytes) -> Compare:
        return Compare(self, "<", to_bytes(operand))


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key.

    Attributes:
        key: The key.
        value: Its new value.
        lease: What keeps the key alive; None for a key that stays.
        previous: Answer what was there before.
    """

    key: str | bytes
    value: str | bytes
    lease: LeaseLike | None = None
    previous: bool = False

    def message(self, namespace: bytes) -> rpc_pb2.PutRequest:
        """Answer the protocol's request."""
        return rpc_pb2.PutRequest(
            key=namespace + to_bytes(self.key),
            value=to_bytes(self.value),
            lease=lease_id_of(self.lease),
            prev_kv=self.previous,
        )

    def encode(self, namespace: bytes) -> rpc_pb2.RequestOp:
        """Answer the operation of a txn."""
        return rpc_pb2.RequestOp(request_put=self.message(namespace))


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key or a range.

    Attributes:
        key: The key, prefix or start of the range.
        prefix: All keys that begin with ``key``.
        range_end: The first key that no longer belongs to the range.
        from_key: All keys from ``key`` on.
        limit: At most this many, 0 for all.
        revision: Read as of this revision, 0 for the newest.
        sort_by: Order by this; by key when None.
        descending: Turn the order round.
        keys_only: Leave the values out.
        count_only: Answer only how many.
        serializable: Let one member answer from what it has: faster, perhaps stale.
        min_mod_revision: Only keys changed at or after this revision, 0 for no bound; likewise the other three.
    """

    key: str | bytes
    prefix: bool = False
    range_end: str | bytes | None = None
    from_key: bool = False
    limit: int = 0
    revision: int = 0
    sort_by: SortBy | None = None
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    serializable: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0

    def message(self, namespace: bytes) -> rpc_pb2.RangeRequest:
        """Answer the protocol's request."""
        key, end = resolve(namespace, self.key, prefix=self.prefix, range_end=self.range_end, from_key=self.from_key)
        request = rpc_pb2.RangeRequest(
            key=key,
            range_end=end,
            limit=self.limit,
            revision=self.revision,
            serializable=self.serializable,
            keys_only=self.keys_only,
            count_only=self.count_only,
            min_mod_revision=self.min_mod_revision,
            max_mod_revision=self.max_mod_revision,
            min_create_revision=self.min_create_revision,
            max_create_revision=self.max_create_revision,
        )
        if self.sort_by is not None or self.descending:
            request.sort_target = _TARGETS[self.sort_by or "key"]
            request.sort_order = rpc_pb2.RangeRequest.DESCEND if self.descending else rpc_pb2.RangeRequest.ASCEND
        return request

    def encode(self, namespace: bytes) -> rpc_pb2.RequestOp:
        """Answer the operation of a txn."""
        return rpc_pb2.RequestOp(request_range=self.message(namespace))


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key or a range.

    Attributes:
        key: The key, prefix or start of the range.
        prefix: All keys that begin with ``key``.
        range_end: The first key that no longer belongs to the range.
        from_key: All keys from ``key`` on.
        previous: Answer what was deleted.
    """

    key: str | bytes
    prefix: bool = False
    range_end: str | bytes | None = None
    from_key: bool = False
    previous: bool = False

    def message(self, namespace: bytes) -> rpc_pb2.DeleteRangeRequest:
        """Answer the protocol's request."""
        key, end = resolve(namespace, self.key, prefix=self.prefix, range_end=self.range_end, from_key=self.from_key)
        return rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=self.previous)

    def encode(self, namespace: bytes) -> rpc_pb2.RequestOp:
        """Answer the operation of a txn."""
        return rpc_pb2.RequestOp(request_delete_range=self.message(namespace))


@dataclass(frozen=True, slots=True)
class Txn:
    """A txn inside a txn.

    Attributes:
        when: Conditions; they see the state before the outer txn.
        then: What runs when all hold.
        otherwise: What runs when not.
    """

    when: Sequence[Compare] = ()
    then: Sequence[Operation] = ()
    otherwise: Sequence[Operation] = ()

    def message(self, namespace: bytes) -> rpc_pb2.TxnRequest:
        """Answer the protocol's request."""
        return rpc_pb2.TxnRequest(
            compare=[compare.encode(namespace) for compare in self.when],
            success=[operation.encode(namespace) for operation in self.then],
            failure=[operation.encode(namespace) for operation in self.otherwise],
        )

    def encode(self, namespace: bytes) -> rpc_pb2.RequestOp:
        """Answer the operation of a txn."""
        return rpc_pb2.RequestOp(request_txn=self.message(namespace))

    @property
    def read_only(self) -> bool:
        """Whether no branch writes."""
        return all(
            isinstance(operation, Get) or (isinstance(operation, Txn) and operation.read_only)
            for operation in (*self.then, *self.otherwise)
        )


Operation: TypeAlias = Put | Get | Delete | Txn
"""What a txn can do."""
