"""Protocol messages as JSON, the way the gateway of etcd 3.5 writes and reads them.

Out: snake_case names in field order, 64-bit integers as strings, bytes as base64, enums by name, zero fields left out.
In: snake or camel case, numbers or strings for 64-bit integers, enums by name or number, null for nothing, unknown
fields ignored; the texts of refusals are those of Go's JSON library.

Both directions are compiled once a message type from its descriptor into flat tables, because protobuf's own
``json_format`` costs more than the rest of a request. Hot: one :class:`Codec` call each way a request of the gateway
(benchmark ``gateway``).
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Generator
from functools import lru_cache
from json import JSONDecoder
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from kvserver import limits
from kvserver.proto.rpc_pb2 import ResponseHeader
from kvserver.web.gojson import JsonError, Splitter, first_value, quote_char

# Values of any field pass through these tables; Any keeps them free of casts, which cost as much as the work itself.
Emit = Callable[[Any], bytes]
Read = Callable[[Any], Any]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)\Z")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_HTML = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}

_INT_TYPES = {
    FieldDescriptor.TYPE_INT64: ("int64", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: ("uint64", 0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: ("int32", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: ("uint32", 0, (1 << 32) - 1),
}


def quote(text: str) -> bytes:
    """Write a JSON string as Go does, with the characters escaped that matter to HTML."""
    return orjson.dumps(text).decode().translate(_HTML).encode()


# -- out --------------------------------------------------------------------------------------------------------------


def _emit_bytes(value: Any) -> bytes:
    return b'"' + b2a_base64(value, newline=False) + b'"'


def _emit_int64(value: Any) -> bytes:
    return b'"%d"' % value


def _emit_int(value: Any) -> bytes:
    return b"%d" % value


def _emit_bool(value: Any) -> bytes:
    return b"true" if value else b"false"


def _enum_emitter(enum: EnumDescriptor) -> Emit:
    names = {number: b'"' + value.name.encode() + b'"' for number, value in enum.values_by_number.items()}
    return lambda value: names.get(value) or _emit_int(value)


def _list_emitter(emit: Emit) -> Emit:
    return lambda values: b"[" + b",".join(map(emit, values)) + b"]"


def _field_emitter(field: FieldDescriptor) -> Emit:
    if field.message_type is not None:
        return codec_of(field.message_type).emit
    if field.enum_type is not None:
        return _enum_emitter(field.enum_type)
    if field.type in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64):
        return _emit_int64
    if field.type in _INT_TYPES:
        return _emit_int
    return {
        FieldDescriptor.TYPE_BYTES: _emit_bytes,
        FieldDescriptor.TYPE_BOOL: _emit_bool,
        FieldDescriptor.TYPE_STRING: quote,
    }[field.type]


# -- in ---------------------------------------------------------------------------------------------------------------


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else "number"


def _mismatch(value: object, go_type: str) -> JsonError:
    return JsonError(f"json: cannot unmarshal {_kind(value)} into Go value of type {go_type}")


def _base64_fault(data: bytes) -> int:
    """Find where Go's decoder stops at text that is not base64."""
    end = len(data)
    position = 0
    while True:
        for place in range(4):
            while position < end and data[position] in b"\r\n":
                position += 1
            if position == end:
                return position - place
            char = data[position]
            position += 1
            if char in _BASE64:
                continue
            if char != 0x3D or place < 2:
                return position - 1
            if place == 2:
                while position < end and data[position] in b"\r\n":
                    position += 1
                if position == end:
                    return end
                if data[position] != 0x3D:
                    return position - 1
                position += 1
            while position < end and data[position] in b"\r\n":
                position += 1
            return position


def _read_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        if isinstance(value, list):  # Go's decoder takes a list of numbers for bytes, too
            return bytes(map(_read_byte, value))
        raise _mismatch(value, "[]uint8")
    data = value.encode("utf-8", "surrogatepass")
    try:
        return a2b_base64(data, strict_mode=True)
    except ValueError:
        pass
    plain = data.replace(b"\r", b"").replace(b"\n", b"")
    if b"-" in plain or b"_" in plain:
        plain = plain.translate(_TO_STANDARD)
        plain += b"=" * (-len(plain) % 4)
    try:
        return a2b_base64(plain, strict_mode=True)
    except ValueError:
        raise JsonError(f"illegal base64 data at input byte {_base64_fault(data)}") from None


def _read_byte(value: Any) -> Any:
    if type(value) is int:
        if 0 <= value <= 255:
            return value
        raise JsonError(f"json: cannot unmarshal number {value} into Go value of type uint8")
    if value is None:
        return 0
    raise _mismatch(value, "uint8")


def _read_bool(value: Any) -> Any:
    if value is True or value is False:
        return value
    raise _mismatch(value, "bool")


def _read_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise _mismatch(value, "string")


class _Literal(str):
    """A number as it was written, where that matters for the text of a refusal."""


class _NumberError(Exception):
    """A number does not fit its field, and only the literal can say so in Go's words."""


_LITERAL = JSONDecoder(parse_float=_Literal, parse_int=lambda text: int(text) if len(text) < 20 else _Literal(text))


def _integer_reader(go_type: str, low: int, high: int) -> Read:
    def refuse(literal: str) -> JsonError:
        return JsonError(f"json: cannot unmarshal number {literal} into Go value of type {go_type}")

    def read(value: Any) -> Any:
        if type(value) is int:
            if low <= value <= high:
                return value
            raise refuse(str(value))
        if type(value) is float:
            raise _NumberError
        if type(value) is _Literal:
            raise refuse(value)
        if type(value) is not str:
            raise _mismatch(value, go_type)
        text = value.strip(" \t\r\n")
        if not _INTEGER.match(text):
            _refuse_integer_text(text, go_type)
            raise refuse(text)
        number = int(text) if len(text) < 21 else high + 1
        if not low <= number <= high:
            raise refuse(text)
        return number

    return read


def _refuse_integer_text(text: str, go_type: str) -> None:
    """Raise for the content of a string that should hold an integer, unless it is a number of another form."""
    if not text:
        raise JsonError("unexpected end of JSON input")
    number = _NUMBER.match(text)
    if number and number.end() < len(text) and text[number.end()] not in ".eE":
        char = quote_char(text[number.end() :].encode()[0])
        raise JsonError(f"invalid character {char} after top-level value")
    splitter = Splitter()
    values = list(splitter.feed(text[:_INTEGER_TEXT_MAX].encode()).values()) or splitter.finish()
    value = orjson.loads(values[0])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, go_type)


_INTEGER_TEXT_MAX = 64


def _enum_reader(enum: EnumDescriptor) -> Read:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    read_number = _integer_reader("protoreflect.EnumNumber", -(1 << 31), (1 << 31) - 1)

    def read(value: Any) -> Any:
        if type(value) is str:
            if value not in numbers:
                shown = orjson.dumps(orjson.dumps(value).decode()).decode()
                raise JsonError(f"unknown value {shown} for enum {enum.full_name}")
            return numbers[value]
        return read_number(value)

    return read


def _list_reader(read: Read) -> Read:
    def read_list(value: Any) -> Any:
        if not isinstance(value, list):
            raise _mismatch(value, "[]json.RawMessage")
        if len(value) > limits.JSON_LIST_ITEMS_MAX:
            raise JsonError(f"list of {len(value)} elements, expected at most {limits.JSON_LIST_ITEMS_MAX}")
        return [read(item) for item in value]

    return read_list


def _field_reader(field: FieldDescriptor) -> Read:
    if field.message_type is not None:
        return codec_of(field.message_type).read
    if field.enum_type is not None:
        return _enum_reader(field.enum_type)
    if field.type in _INT_TYPES:
        return _integer_reader(*_INT_TYPES[field.type])
    return {
        FieldDescriptor.TYPE_BYTES: _read_bytes,
        FieldDescriptor.TYPE_BOOL: _read_bool,
        FieldDescriptor.TYPE_STRING: _read_text,
    }[field.type]


# -- the codec --------------------------------------------------------------------------------------------------------


class Codec:
    """The compiled conversions of one message type; get it from :func:`codec_of`.

    The tables are filled at the first use, since message types may contain themselves (txns do).
    """

    __slots__ = ("_descriptor", "_emitters", "_has_header", "_nested", "_numbers", "_readers", "message_class")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self.message_class: type[Message] = GetMessageClass(descriptor)
        self._emitters: tuple[tuple[str, bytes, Emit, bool], ...] | None = None
        self._readers: dict[str, tuple[str, Read]] = {}
        self._numbers: dict[str, int] = {}
        self._nested: dict[str, Codec] = {}
        first = descriptor.fields_by_number.get(1)
        self._has_header = first is not None and first.name == "header"

    def _compile(self) -> tuple[tuple[str, bytes, Emit, bool], ...]:
        emitters = []
        for field in self._descriptor.fields:
            emit, read = _field_emitter(field), _field_reader(field)
            if field.is_repeated:
                emit, read = _list_emitter(emit), _list_reader(read)
            emitters.append((field.name, b'"' + field.name.encode() + b'":', emit, field.has_presence))
            self._readers[field.name] = self._readers[field.json_name] = (field.name, read)
            if field.message_type is not None:
                self._nested[field.name] = codec_of(field.message_type)
            if field.containing_oneof is not None:
                self._numbers[field.name] = field.number
        self._emitters = tuple(emitters)
        return self._emitters

    def emit(self, message: Any) -> bytes:
        """Write a message as a JSON object."""
        return b"{" + b",".join(self._parts(message)) + b"}"

    def _parts(self, message: Any) -> list[bytes]:
        parts = []
        for name, prefix, emit, has_presence in self._emitters or self._compile():
            if has_presence:
                if message.HasField(name):
                    parts.append(prefix + emit(getattr(message, name)))
            else:
                value = getattr(message, name)
                if value:
                    parts.append(prefix + emit(value))
        return parts

    def read(self, value: object) -> Message:
        """Build the message from a parsed JSON value.

        Raises:
            JsonError: a field has the wrong type.
        """
        if not isinstance(value, dict):
            if value is None:
                return self.message_class()
            raise _mismatch(value, "map[string]json.RawMessage")
        if self._emitters is None:
            self._compile()
        readers = self._readers
        arguments: dict[str, Any] = {}
        for key, item in value.items():
            found = readers.get(key)
            if found is not None and item is not None:
                arguments[found[0]] = found[1](item)
        if self._numbers and len(arguments) > 1:  # of several members of a oneof the highest number wins, as in Go
            arguments = dict(sorted(arguments.items(), key=lambda item: self._numbers.get(item[0], 0)))
        try:
            return self.message_class(**arguments)
        except ValueError as error:  # text that is not Unicode
            raise JsonError(str(error)) from None

    def to_json(self, message: bytes) -> bytes:
        """Write a serialized message as JSON."""
        if self._has_header and message[:1] == b"\n" and message[1] < 0x80:
            end = 2 + message[1]
            header = _header_json(message[2:end])
            if end == len(message):
                return b'{"header":' + header + b"}"
            rest = self._parts(self.message_class.FromString(message[end:]))
            return b'{"header":' + header + b"," + b",".join(rest) + b"}"
        return self.emit(self.message_class.FromString(message))

    def slices(self, message: bytes) -> Generator[None, None, bytes]:
        """Write a large serialized message as JSON, pausing after every piece of work of a few milliseconds."""
        budget = _Budget()
        answer = yield from self._emit_slices(self.message_class.FromString(message), budget)
        return answer

    def _emit_slices(self, message: Any, budget: _Budget) -> Generator[None, None, bytes]:
        parts = []
        for name, prefix, emit, has_presence in self._emitters or self._compile():
            nested = self._nested.get(name)
            value = getattr(message, name)
            if nested is None or (has_presence and not message.HasField(name)):
                if message.HasField(name) if has_presence else value:
                    parts.append(prefix + emit(value))
            elif has_presence:
                parts.append(prefix + (yield from nested._emit_slices(value, budget)))
            elif value:
                items = []
                for item in value:
                    size = item.ByteSize()
                    if size > limits.JSON_SLICE_BYTES:
                        items.append((yield from nested._emit_slices(item, budget)))
                    else:
                        items.append(nested.emit(item))
                    if budget.spend(size + _ITEM_COST_BYTES):
                        yield
                parts.append(prefix + b"[" + b",".join(items) + b"]")
        return b"{" + b",".join(parts) + b"}"

    def from_json(self, body: bytes) -> bytes:
        """Read the first JSON value of a body as a serialized message; an empty body is an empty message.

        Raises:
            JsonError: the body is not JSON, or does not fit the message.
        """
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = first_value(body, limits.JSON_SCAN_BYTES_MAX)
        try:
            return self._serialized(value)
        except _NumberError:
            text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
            return self._serialized(_LITERAL.raw_decode(text)[0])

    def _serialized(self, value: object) -> bytes:
        try:
            return self.read(value).SerializeToString()
        except (DecodeError, RecursionError):  # as Python's protobuf reports a message nested more than 100 deep
            raise JsonError("exceeded max depth: a message may be nested 100 deep, a txn 49") from None


@lru_cache(maxsize=4)
def _header_json(header: bytes) -> bytes:
    """Write a response header; reads repeat the last one."""
    return codec_of(ResponseHeader.DESCRIPTOR).emit(ResponseHeader.FromString(header))


_ITEM_COST_BYTES = 128
"""What an item costs beyond its bytes, in bytes."""


class _Budget:
    """Counts work until it is time to pause."""

    def __init__(self) -> None:
        self._left = limits.JSON_SLICE_BYTES

    def spend(self, cost: int) -> bool:
        self._left -= cost
        if self._left > 0:
            return False
        self._left = limits.JSON_SLICE_BYTES
        return True


_CODECS: dict[str, Codec] = {}


def codec_of(descriptor: Descriptor) -> Codec:
    """Answer the codec of a message type; one a type."""
    codec = _CODECS.get(descriptor.full_name)
    if codec is None:
        codec = _CODECS[descriptor.full_name] = Codec(descriptor)
    return codec
