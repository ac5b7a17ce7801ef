"""Ranges: what is asked beside the keys, and how what was fetched becomes the answer.

The order of work is the protocol's: fetch, filter by revisions, sort, limit. ``count`` is how many keys the range
holds, whatever filters and limit say; ``more`` says that the limit cut something. Ties of a sort stay in key order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar

from kvserver import errors
from kvserver.limits import MVCC_SLICE_RECORDS as SLICE_RECORDS
from kvserver.mvcc.records import body_of, parse_key_value, without_value
from kvserver.proto.kv_pb2 import KeyValue
from kvserver.proto.rpc_pb2 import RangeRequest


class RangeOptions(NamedTuple):
    """What a range asks beside its keys; the fields of RangeRequest."""

    limit: int = 0
    revision: int = 0
    sort_order: int = RangeRequest.NONE
    sort_target: int = RangeRequest.KEY
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0

    @property
    def filtered(self) -> bool:
        """Whether a revision filter is set."""
        return bool(
            self.min_mod_revision or self.max_mod_revision or self.min_create_revision or self.max_create_revision
        )

    @property
    def sorted(self) -> bool:
        """Whether the answer has to be sorted; by key ascending it is already."""
        return self.sort_order != RangeRequest.NONE or self.sort_target != RangeRequest.KEY

    def check(self) -> None:
        """Check the options.

        Raises:
            InvalidSortOptionError: sort order or target is not of the protocol.
        """
        if not (0 <= self.sort_order <= RangeRequest.DESCEND and 0 <= self.sort_target <= RangeRequest.VALUE):
            raise errors.InvalidSortOptionError


@dataclass(slots=True)
class RangeResult:
    """What a range found: records in answer order, how many keys the range holds, whether the limit cut it."""

    kvs: list[bytes]
    count: int
    more: bool


_Result = TypeVar("_Result")
_Item: TypeAlias = tuple[int | bytes, int, bytes]


def run(slices: Generator[None, None, _Result]) -> _Result:
    """Run sliced work to its end at once."""
    while True:
        try:
            next(slices)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


_SORT_FIELDS: dict[int, Callable[[KeyValue], int | bytes]] = {
    RangeRequest.VERSION: lambda message: message.version,
    RangeRequest.CREATE: lambda message: message.create_revision,
    RangeRequest.MOD: lambda message: message.mod_revision,
    RangeRequest.VALUE: lambda message: message.value,
}


class Shape:
    """Filters, sorts and limits records that arrive in slices, in key order."""

    def __init__(self, options: RangeOptions) -> None:
        self._options = options
        self._found: list[bytes] = []
        self._matched = 0
        # Sorted runs of (field, place, record), one a slice, of at most ``limit`` each.
        self._runs: list[list[_Item]] = []
        self._descending = options.sort_order == RangeRequest.DESCEND
        self._field = _SORT_FIELDS.get(options.sort_target)

    @property
    def full(self) -> bool:
        """Whether more records cannot change the answer, but for its count."""
        options = self._options
        if options.count_only:
            return True
        return 0 < options.limit <= len(self._found) and not (options.sorted or options.filtered)

    def take(self, records: list[bytes]) -> None:
        """Take the next records in key order."""
        options = self._options
        if options.count_only:
            return
        if options.filtered:
            records = _filtered(records, options)
        if self._field is None:
            self._found += records
        elif records:
            self._runs.append(self._run(records, self._field))
        self._matched += len(records)

    def _run(self, records: list[bytes], field: Callable[[KeyValue], int | bytes]) -> list[_Item]:
        # Descending order is taken from the end, where ties must come with the first key last.
        step = -1 if self._descending else 1
        first = self._matched
        items = [
            (field(parse_key_value(body_of(record))), step * (first + place), record)
            for place, record in enumerate(records)
        ]
        items.sort(reverse=self._descending)
        if self._options.limit > 0:
            del items[self._options.limit :]
        return items

    def result(self, count: int) -> Generator[None, None, RangeResult]:
        """Finish the answer, a slice a step.

        Args:
            count: how many keys the range holds.
        """
        options = self._options
        if options.count_only:
            return RangeResult([], count, False)
        limit = max(0, options.limit)
        # What was fetched may have been limited before; then only the count tells that there is more.
        more = 0 < limit < (self._matched if options.filtered else count)
        records = self._found
        if self._field is None:
            if self._descending:
                records.reverse()
            if limit:
                del records[limit:]
        elif len(self._runs) == 1:
            records = [item[2] for item in self._runs[0]]
        else:
            merged = heapq.merge(*self._runs, reverse=self._descending)
            while (not limit or len(records) < limit) and (part := list(islice(merged, SLICE_RECORDS))):
                records += [item[2] for item in part]
                yield
            if limit:
                del records[limit:]
        if options.keys_only:
            for start in range(0, len(records), SLICE_RECORDS):
                records[start : start + SLICE_RECORDS] = map(without_value, records[start : start + SLICE_RECORDS])
                if start:
                    yield
        return RangeResult(records, count, more)


def _filtered(records: list[bytes], options: RangeOptions) -> list[bytes]:
    low_mod, high_mod = options.min_mod_revision, options.max_mod_revision
    low_create, high_create = options.min_create_revision, options.max_create_revision
    kept = []
    for record in records:
        message = parse_key_value(body_of(record))
        if low_mod and message.mod_revision < low_mod:
            continue
        if high_mod and message.mod_revision > high_mod:
            continue
        if low_create and message.create_revision < low_create:
            continue
        if high_create and message.create_revision > high_create:
            continue
        kept.append(record)
    return kept
