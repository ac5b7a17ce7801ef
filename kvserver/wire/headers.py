"""HPACK header blocks to what gRPC needs of them, as fast as Python can.

A block's meaning depends on the connection's dynamic table, which is ``hpack``'s. Three ways lead to a result, the fast
ones first:

1. **The very same bytes.** A block that neither inserts nor resizes means the same as long as the table does not
   change, so results are kept by block bytes (the caller's dict ``blocks``, which this module empties when the table
   changes).
2. **The same fields in other bytes.** A client that sends a different ``grpc-timeout`` with each call has it indexed
   (grpc-go, node), which shifts the index of every other field: no block is ever repeated. Such blocks are walked
   here field by field over ``hpack``'s own table (:meth:`HeaderDecoder.walk`); the fields without the timeout are a
   key to the finished result. And when all fields but the timeout are indexed, not even the walk is needed:
   :meth:`HeaderDecoder.recall` translates the indices into numbers of insertions, which stay the same, in one
   ``bytes.translate`` and looks that up.
3. **Everything else**: ``hpack.Decoder``. The walk hands over to it in the middle of a block where it meets something
   unusual, which is sound because fields are independent but for the table.

Invariants: the table is changed only by ``hpack``'s own methods; whatever changes it empties ``blocks``; ``_inserted``
counts its insertions, and whatever changes it uncounted empties ``_shapes``.
No stream, frame or socket here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, MutableMapping
from typing import Generic, TypeVar

from hpack import Decoder, HPACKDecodingError, HPACKError, OversizedHeaderListError
from hpack.huffman_table import (
    HUFFMAN_COMPLETE,
    HUFFMAN_EMIT_SYMBOL,
    HUFFMAN_FAIL,
    HUFFMAN_TABLE,
    decode_huffman,
)
from hpack.table import HeaderTable

from kvserver.wire.faults import PeerFaultError
from kvserver.wire.frames import ErrorCode

Field = tuple[bytes, bytes]

_Value = TypeVar("_Value")

TIMEOUT = b"grpc-timeout"

_STATIC: tuple[Field, ...] = tuple(HeaderTable.STATIC_TABLE)
_WALK_BYTES_MAX = 1024

_INDEXED = bytes(range(0x81, 0xFF))
"""First bytes of fields that are one byte long: indices 1 to 126."""

_SHIFTS = [
    bytes((shift - (byte - 0xBE)) % 128 if 0xBE <= byte < 0xFF else byte for byte in range(256)) for shift in range(128)
]
"""By insertions modulo 128: translates an index of the dynamic table (one byte) into its insertion's number modulo 128,
which no index of the static table looks like."""

_SHAPES_INSERTIONS_MAX = 60
"""Insertions after which remembered shapes are dropped: before numbers modulo 128 can mean another entry."""

_SHAPE_TABLE_BYTES_MIN = 512
"""Below this the table may be too small for an entry to stay in it."""

_OWN_LITERAL = b"\x00\x0cgrpc-timeout"

_huffman_known: dict[bytes, bytes] = {}
_HUFFMAN_KNOWN_MAX = 4096


class _WalkEnds(Exception):  # noqa: N818 - not an error: the walk has met something that hpack shall read
    pass


def _huffman(data: bytes) -> bytes:
    """Decode a Huffman-coded string; short ones are remembered, since names repeat."""
    value = _huffman_known.get(data)
    if value is None:
        value = decode_huffman(data)
        if len(data) <= 32:
            if len(_huffman_known) >= _HUFFMAN_KNOWN_MAX:
                _huffman_known.clear()
            _huffman_known[data] = value
    return value


class HeaderDecoder(Generic[_Value]):
    """Decodes the header blocks of one direction of one connection.

    Args:
        list_bytes_max: largest decoded header list, counted as RFC 9113 10.5.1 does.
        blocks: results by block bytes, emptied here whenever the dynamic table changes.
    """

    __slots__ = (
        "_blocks",
        "_decoder",
        "_entries",
        "_inserted",
        "_list_bytes_max",
        "_shape",
        "_shapes",
        "_shapes_since",
        "_table",
    )

    def __init__(self, list_bytes_max: int, blocks: MutableMapping[bytes, _Value]) -> None:
        self._decoder = Decoder(max_header_list_size=list_bytes_max)
        self._table: HeaderTable = self._decoder.header_table
        self._entries: deque[Field] = self._table.dynamic_entries
        self._list_bytes_max = list_bytes_max
        self._blocks = blocks
        self._inserted = 0
        self._shapes: dict[bytes | tuple[bytes, bytes], tuple[_Value, int]] = {}  # by shape: result, oldest insertion
        self._shapes_since = 0
        self._shape: tuple[bytes | tuple[bytes, bytes], int] | None = None  # of the block that was not recalled

    def decode(self, block: bytes) -> tuple[list[Field], bool]:
        """Decode a whole block.

        Returns:
            The fields, and whether the block left the table as it was (so that its bytes may be remembered).

        Raises:
            PeerFaultError: not HPACK, or larger than the limit; the table is unusable afterwards.
        """
        table = self._table
        entries = self._entries
        before = (entries[0] if entries else None, len(entries), table.maxsize)
        fields = self._decode(block)
        unchanged = (
            len(entries) == before[1] and table.maxsize == before[2] and (not entries or entries[0] is before[0])
        )
        if not unchanged:
            self._blocks.clear()
            self._shapes.clear()
            self._shape = None
        return fields, unchanged

    def _decode(self, block: bytes) -> list[Field]:
        try:
            decoded: Iterable[Field] = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        except (HPACKError, ValueError, IndexError) as error:
            raise PeerFaultError(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from None
        return [(bytes(field[0]), bytes(field[1])) for field in decoded]

    def walk(self, block: bytes) -> tuple[tuple[Field, ...], bytes | None, bool] | None:
        """Decode a block of common shape; the fast way for a changing ``grpc-timeout``. Hot: "varying timeout".

        Returns:
            The fields without the literal ``grpc-timeout``, that timeout's value if there was one, and whether the
            table is unchanged; ``None`` when the block is not for this way (nothing was changed then). The size of the
            list is not checked: the caller does it for lists it has not seen before (see :meth:`check_size`).

        Raises:
            PeerFaultError: see :meth:`decode`.
        """
        size = len(block)
        if size > _WALK_BYTES_MAX or not size or block[0] & 0xE0 == 0x20:
            return None
        entries = self._entries
        fields: list[Field] = []
        append = fields.append
        timeout: bytes | None = None
        unchanged = True
        position = 0
        try:
            while position < size:
                byte = block[position]
                if byte >= 0x80:
                    if 0x80 < byte < 0xBE:
                        append(_STATIC[byte - 0x81])
                    elif 0xBE <= byte < 0xFF:
                        append(entries[byte - 0xBE])
                    elif byte == 0x80:
                        raise _WalkEnds
                    else:
                        position += 1
                        second = block[position]
                        if second >= 0x80:
                            position -= 1
                            raise _WalkEnds
                        append(entries[second + 65])  # 127 + second - 62
                    position += 1
                    continue
                if 0x20 <= byte < 0x40:  # a size update after a field
                    raise _WalkEnds
                start = position
                index = byte & 0x3F if byte >= 0x40 else byte & 0x0F
                position += 1
                if index == 0:
                    length = block[position]
                    position += 1
                    if length & 0x7F == 0x7F:
                        position = start
                        raise _WalkEnds
                    end = position + (length & 0x7F)
                    name = block[position:end]
                    if length & 0x80:
                        name = _huffman(name)
                    position = end
                else:
                    if index == (0x3F if byte >= 0x40 else 0x0F):
                        second = block[position]
                        if second >= 0x80:
                            position = start
                            raise _WalkEnds
                        index += second
                        position += 1
                    name = _STATIC[index - 1][0] if index < 62 else entries[index - 62][0]
                length = block[position]
                position += 1
                if length & 0x7F == 0x7F:
                    position = start
                    raise _WalkEnds
                end = position + (length & 0x7F)
                if end > size:
                    raise PeerFaultError(ErrorCode.COMPRESSION_ERROR, "header block: truncated")
                value = block[position:end]
                position = end
                if length & 0x80:
                    value = decode_value(value) if name == TIMEOUT else _huffman(value)
                if byte >= 0x40:
                    if unchanged:
                        unchanged = False
                        self._blocks.clear()
                    self._table.add(name, value)
                    self._inserted += 1
                    if not entries or entries[0][1] is not value:  # too large for the table
                        self._shapes.clear()
                        self._shape = None
                if name == TIMEOUT:
                    timeout = value
                else:
                    append((name, value))
        except _WalkEnds:
            rest = block[position:]
            if rest[0] & 0xE0 == 0x20:
                raise PeerFaultError(ErrorCode.COMPRESSION_ERROR, "header block: late table size update") from None
            more, kept = self.decode(rest)
            fields += more
            unchanged = unchanged and kept
        except (HPACKError, IndexError) as error:
            raise PeerFaultError(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from None
        return tuple(fields), timeout, unchanged

    def recall(self, block: bytes) -> tuple[_Value, bytes] | None:
        """Answer what was remembered for this block's shape, and its ``grpc-timeout``. Hot: "varying timeout".

        A shape is: fields of one byte each, a literal ``grpc-timeout``, again fields of one byte each. When ``None`` is
        answered nothing was changed; decode the block another way and give the result to :meth:`remember`.
        """
        self._shape = None
        size = len(block)
        start = size - len(block.lstrip(_INDEXED))
        entries = self._entries
        if start == size or size > _WALK_BYTES_MAX or self._table.maxsize < _SHAPE_TABLE_BYTES_MIN:
            return None
        byte = block[start]
        position = start + 1
        try:
            if byte == 0:
                if not block.startswith(_OWN_LITERAL, start):
                    return None
                position = start + 14
            else:
                if 0x20 <= byte < 0x40:
                    return None
                if byte >= 0x40:
                    index = byte & 0x3F
                    full = 0x3F
                else:
                    index = full = byte & 0x0F
                    if index != 0x0F:  # no static name below it is ours
                        return None
                if index == full:
                    index += block[position]
                    position += 1
                    if index >= full + 0x80:
                        return None
                if index < 62 or entries[index - 62][0] != TIMEOUT:
                    return None
            length = block[position]
            position += 1
            end = position + (length & 0x7F)
            if end > size or length & 0x7F == 0x7F:
                return None
            value = block[position:end]
            if length & 0x80:
                value = decode_value(value)
        except (IndexError, HPACKError):
            return None
        inserted = self._inserted
        if inserted - self._shapes_since >= _SHAPES_INSERTIONS_MAX:
            self._shapes.clear()
            self._shapes_since = inserted
        prefix = block[:start]
        before = prefix.translate(_SHIFTS[inserted & 127])
        key: bytes | tuple[bytes, bytes] = before
        indexed = byte >= 0x40
        if end < size:
            suffix = block[end:]
            if suffix.lstrip(_INDEXED):
                return None
            key = (before, suffix.translate(_SHIFTS[inserted + indexed & 127]))
            margin = 8  # entries that the insertion may push out before the suffix is read
        else:
            suffix = b""
            margin = 0
        known = self._shapes.get(key)
        if known is None:
            oldest = inserted - (max(prefix + suffix, default=0xBD) - 0xBE)
            self._shape = (key, oldest)
            return None
        if inserted - known[1] + margin >= len(entries) and known[1] <= inserted:
            return None
        if indexed:
            if self._blocks:
                self._blocks.clear()
            self._table.add(TIMEOUT, value)
            self._inserted = inserted + 1
        return known[0], value

    def remember(self, value: _Value) -> None:
        """Keep the result of the block that :meth:`recall` was asked for last."""
        if self._shape is not None:
            self._shapes[self._shape[0]] = (value, self._shape[1])
            self._shape = None

    def check_size(self, fields: Iterable[Field]) -> None:
        """Refuse a header list above the limit.

        Raises:
            PeerFaultError: it is.
        """
        total = sum(len(name) + len(value) + 32 for name, value in fields)
        if total > self._list_bytes_max:
            raise PeerFaultError(
                ErrorCode.ENHANCE_YOUR_CALM, f"A header list larger than {self._list_bytes_max} has been received"
            )


_value_steps: dict[int, tuple[int, bytes]] = {}
_value_ends: dict[int, bool] = {0: True}


def _value_step(key: int) -> tuple[int, bytes]:
    """Note what a byte does in a state of ``hpack``'s nibble machine: next state << 8, and output."""
    state = key >> 8
    output = b""
    flags = 0
    for nibble in ((key & 0xFF) >> 4, key & 0x0F):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + nibble]
        if flags & HUFFMAN_FAIL:
            raise HPACKDecodingError("Invalid Huffman string")
        if flags & HUFFMAN_EMIT_SYMBOL:
            output += bytes((symbol,))
    _value_ends[state << 8] = bool(flags & HUFFMAN_COMPLETE)
    step = _value_steps[key] = (state << 8, output)
    return step


def decode_value(data: bytes) -> bytes:
    """Decode a Huffman-coded value that never repeats: a dict step a byte, made from ``hpack``'s table as needed.

    Raises:
        HPACKDecodingError: not Huffman code.
    """
    state = 0
    output = b""
    steps = _value_steps
    for byte in data:
        step = steps.get(state | byte)
        if step is None:
            step = _value_step(state | byte)
        state = step[0]
        output += step[1]
    if not _value_ends[state]:
        raise HPACKDecodingError("Incomplete Huffman string")
    return output
