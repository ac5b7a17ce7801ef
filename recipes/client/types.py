"""What calls answer: key-values, results and watch events.

Values, never changed after they are made. They wrap the message they came in and translate on access, since most fields
of most answers are never looked at. Keys have the client's namespace taken off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Protocol, TypeAlias, overload

from kvserver.proto import kv_pb2, rpc_pb2
from recipes.client.keys import to_text

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
"""What a JSON document can hold."""


class HasLease(Protocol):
    """Something kept by a lease: a session."""

    @property
    def lease_id(self) -> int:
        """The lease's id."""
        ...


LeaseLike: TypeAlias = int | HasLease
"""A lease id, or something that has one."""


def lease_id_of(lease: LeaseLike | None) -> int:
    """Answer the id of a lease, 0 for none."""
    if lease is None:
        return 0
    return lease if isinstance(lease, int) else lease.lease_id


class KeyValue:
    """One key with its value and its place in history."""

    __slots__ = ("_cut", "_raw")

    def __init__(self, raw: kv_pb2.KeyValue, cut: int = 0) -> None:
        self._raw = raw
        self._cut = cut

    @property
    def key(self) -> str:
        """The key as text."""
        return to_text(self._raw.key[self._cut :])

    @property
    def raw_key(self) -> bytes:
        """The key as bytes."""
        return self._raw.key[self._cut :]

    @property
    def value(self) -> bytes:
        """The value as bytes."""
        return self._raw.value

    @property
    def text(self) -> str:
        """The value as UTF-8 text.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return self._raw.value.decode()

    def json(self) -> Json:
        """Answer the value parsed as JSON.

        Raises:
            ValueError: it is not JSON.
        """
        parsed: Json = json.loads(self._raw.value)
        return parsed

    @property
    def create_revision(self) -> int:
        """The revision at which the key was created (last)."""
        return self._raw.create_revision

    @property
    def mod_revision(self) -> int:
        """The revision at which the key was last changed."""
        return self._raw.mod_revision

    @property
    def version(self) -> int:
        """How many times it was written since its creation."""
        return self._raw.version

    @property
    def lease_id(self) -> int:
        """The lease that keeps the key, 0 for none."""
        return self._raw.lease

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyValue) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash((self._raw.key, self._raw.mod_revision))

    def __repr__(self) -> str:
        return f"KeyValue({self.key!r}, {self.value!r}, mod_revision={self.mod_revision})"


class RangeResult:
    """The key-values of a range: has a length, can be iterated over and indexed."""

    __slots__ = ("_cut", "_raw")

    def __init__(self, raw: rpc_pb2.RangeResponse, cut: int) -> None:
        self._raw = raw
        self._cut = cut

    @property
    def revision(self) -> int:
        """The store's revision when it answered."""
        return self._raw.header.revision

    @property
    def count(self) -> int:
        """How many keys the range has, whatever the limit."""
        return self._raw.count

    @property
    def more(self) -> bool:
        """Whether the limit cut the answer."""
        return self._raw.more

    @property
    def first(self) -> KeyValue | None:
        """The first key-value, None when there is none."""
        return KeyValue(self._raw.kvs[0], self._cut) if self._raw.kvs else None

    def __len__(self) -> int:
        return len(self._raw.kvs)

    def __iter__(self) -> Iterator[KeyValue]:
        cut = self._cut
        return (KeyValue(raw, cut) for raw in self._raw.kvs)

    @overload
    def __getitem__(self, index: int) -> KeyValue: ...

    @overload
    def __getitem__(self, index: slice) -> list[KeyValue]: ...

    def __getitem__(self, index: int | slice) -> KeyValue | list[KeyValue]:
        if isinstance(index, slice):
            return [KeyValue(raw, self._cut) for raw in self._raw.kvs[index]]
        return KeyValue(self._raw.kvs[index], self._cut)

    def __repr__(self) -> str:
        return f"RangeResult({list(self)!r}, revision={self.revision}, count={self.count})"


class PutResult:
    """A write that happened."""

    __slots__ = ("_cut", "_raw")

    def __init__(self, raw: rpc_pb2.PutResponse, cut: int) -> None:
        self._raw = raw
        self._cut = cut

    @property
    def revision(self) -> int:
        """The revision of the write."""
        return self._raw.header.revision

    @property
    def previous(self) -> KeyValue | None:
        """What the key had before, if it was asked for and existed."""
        return KeyValue(self._raw.prev_kv, self._cut) if self._raw.HasField("prev_kv") else None

    def __repr__(self) -> str:
        return f"PutResult(revision={self.revision})"


class DeleteResult:
    """A deletion that happened."""

    __slots__ = ("_cut", "_raw")

    def __init__(self, raw: rpc_pb2.DeleteRangeResponse, cut: int) -> None:
        self._raw = raw
        self._cut = cut

    @property
    def revision(self) -> int:
        """The store's revision after it."""
        return self._raw.header.revision

    @property
    def deleted(self) -> int:
        """How many keys were deleted."""
        return self._raw.deleted

    @property
    def previous(self) -> tuple[KeyValue, ...]:
        """What was deleted, if it was asked for."""
        return tuple(KeyValue(raw, self._cut) for raw in self._raw.prev_kvs)

    def __repr__(self) -> str:
        return f"DeleteResult(deleted={self.deleted}, revision={self.revision})"


class TxnResult:
    """How a txn ended; true when its conditions held.

    Attributes:
        succeeded: Whether the conditions held, so that ``then`` ran and not ``otherwise``.
        revision: The store's revision after it; the revision of its writes if it wrote.
        responses: One result for each operation that ran.
    """

    __slots__ = ("responses", "revision", "succeeded")

    def __init__(self, raw: rpc_pb2.TxnResponse, cut: int, revision: int = 0) -> None:
        self.succeeded: bool = raw.succeeded
        self.revision: int = raw.header.revision or revision
        self.responses: tuple[PutResult | RangeResult | DeleteResult | TxnResult, ...] = tuple(
            _response(op, cut, self.revision) for op in raw.responses
        )

    def __bool__(self) -> bool:
        return self.succeeded

    def range(self, index: int) -> RangeResult:
        """Answer the result of a ``Get``.

        Raises:
            TypeError: the operation at that place was no ``Get``.
        """
        response = self.responses[index]
        if not isinstance(response, RangeResult):
            raise TypeError(f"operation {index} of the txn was no Get but answered {type(response).__name__}")
        return response

    def __repr__(self) -> str:
        return f"TxnResult(succeeded={self.succeeded}, revision={self.revision}, responses={self.responses!r})"


def _response(op: rpc_pb2.ResponseOp, cut: int, revision: int) -> PutResult | RangeResult | DeleteResult | TxnResult:
    """Answer one operation's result; servers may leave the inner headers out, the revision is the txn's."""
    kind = op.WhichOneof("response")
    if kind == "response_range":
        op.response_range.header.revision = revision
        return RangeResult(op.response_range, cut)
    if kind == "response_put":
        op.response_put.header.revision = revision
        return PutResult(op.response_put, cut)
    if kind == "response_delete_range":
        op.response_delete_range.header.revision = revision
        return DeleteResult(op.response_delete_range, cut)
    return TxnResult(op.response_txn, cut, revision)


class WatchEvent:
    """One change of one key."""

    __slots__ = ("_cut", "_raw")

    def __init__(self, raw: kv_pb2.Event, cut: int = 0) -> None:
        self._raw = raw
        self._cut = cut

    @property
    def is_put(self) -> bool:
        """The key was written."""
        return self._raw.type == kv_pb2.Event.PUT

    @property
    def is_delete(self) -> bool:
        """The key was deleted, or its lease ended."""
        return self._raw.type == kv_pb2.Event.DELETE

    @property
    def is_create(self) -> bool:
        """The key was written and did not exist before."""
        return self.is_put and self._raw.kv.version == 1

    @property
    def item(self) -> KeyValue:
        """The key-value as it is now; after a deletion it has only key and mod_revision."""
        return KeyValue(self._raw.kv, self._cut)

    @property
    def previous(self) -> KeyValue | None:
        """What was there before, if it was asked for (``previous=True``), existed and is not compacted."""
        return KeyValue(self._raw.prev_kv, self._cut) if self._raw.HasField("prev_kv") else None

    @property
    def key(self) -> str:
        """The key as text."""
        return to_text(self._raw.kv.key[self._cut :])

    @property
    def value(self) -> bytes:
        """The value as bytes, empty after a deletion."""
        return self._raw.kv.value

    @property
    def text(self) -> str:
        """The value as UTF-8 text."""
        return self._raw.kv.value.decode()

    @property
    def revision(self) -> int:
        """The revision of the change."""
        return self._raw.kv.mod_revision

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WatchEvent) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash((self._raw.kv.key, self._raw.kv.mod_revision))

    def __repr__(self) -> str:
        kind = "delete" if self.is_delete else "put"
        return f"WatchEvent({kind} {self.key!r} {self.value!r}, revision={self.revision})"
