"""JSON in and out: the codec against protobuf's own, and Go's view of what is not JSON."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver import limits
from kvserver.proto import rpc_pb2
from kvserver.proto.kv_pb2 import Event, KeyValue
from kvserver.proto.rpc_pb2 import (
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    ResponseOp,
    StatusResponse,
    TxnRequest,
    TxnResponse,
    WatchResponse,
)
from kvserver.web.gojson import JsonError, Splitter, first_value
from kvserver.web.jsonpb import codec_of

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
UINT64 = st.integers(0, (1 << 64) - 1)
KEY_VALUES = st.builds(
    KeyValue,
    key=st.binary(max_size=8),
    value=st.binary(max_size=8),
    create_revision=INT64,
    mod_revision=INT64,
    version=INT64,
    lease=INT64,
)
HEADERS = st.builds(ResponseHeader, cluster_id=UINT64, member_id=UINT64, revision=INT64, raft_term=UINT64)
RANGES = st.builds(RangeResponse, header=HEADERS, kvs=st.lists(KEY_VALUES, max_size=3), more=st.booleans(), count=INT64)
RESPONSES = st.one_of(
    RANGES,
    st.builds(
        TxnResponse,
        header=st.none() | HEADERS,
        succeeded=st.booleans(),
        responses=st.lists(st.builds(ResponseOp, response_range=RANGES), max_size=2),
    ),
    st.builds(
        WatchResponse,
        header=HEADERS,
        watch_id=INT64,
        cancel_reason=st.text(max_size=5),
        events=st.lists(st.builds(Event, type=st.sampled_from([0, 1]), kv=KEY_VALUES, prev_kv=st.none() | KEY_VALUES)),
    ),
    st.builds(StatusResponse, header=HEADERS, version=st.text(max_size=8), errors=st.lists(st.text(max_size=4))),
)


def by_protobuf(message: Message) -> object:
    return json.loads(json_format.MessageToJson(message, preserving_proto_field_name=True))


@settings(max_examples=150, deadline=None)
@given(RESPONSES)
def test_answers_are_what_protobuf_itself_would_write(message: Message) -> None:
    codec = codec_of(message.DESCRIPTOR)
    data = message.SerializeToString()
    written = codec.to_json(data)
    assert json.loads(written) == by_protobuf(message)
    slices = codec.slices(data)
    with pytest.raises(StopIteration) as ended:
        while True:
            next(slices)
    assert ended.value.value == written


PUTS = st.builds(PutRequest, key=st.binary(max_size=6), value=st.binary(max_size=6), lease=INT64, prev_kv=st.booleans())
GETS = st.builds(
    RangeRequest,
    key=st.binary(max_size=6),
    limit=INT64,
    sort_order=st.sampled_from([0, 1, 2]),
    sort_target=st.sampled_from([0, 4]),
)
REQUESTS = st.one_of(
    PUTS,
    GETS,
    st.builds(
        TxnRequest,
        success=st.lists(st.builds(RequestOp, request_put=PUTS) | st.builds(RequestOp, request_range=GETS), max_size=3),
    ),
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.booleans())
def test_requests_are_read_as_protobuf_itself_writes_them(message: Message, snake: bool) -> None:
    text = json_format.MessageToJson(message, preserving_proto_field_name=snake)
    assert codec_of(message.DESCRIPTOR).from_json(text.encode()) == message.SerializeToString()


def test_every_message_of_the_protocol_has_a_codec() -> None:
    for descriptor in rpc_pb2.DESCRIPTOR.message_types_by_name.values():
        codec = codec_of(descriptor)
        assert codec.from_json(b"{}") == b""
        assert codec.to_json(b"") == b"{}"


def test_fields_are_written_in_order_and_text_is_escaped_for_html() -> None:
    message = StatusResponse(header=ResponseHeader(revision=3), version="<&>", dbSize=5)
    written = codec_of(StatusResponse.DESCRIPTOR).to_json(message.SerializeToString())
    assert written == b'{"header":{"revision":"3"},"version":"\\u003c\\u0026\\u003e","dbSize":"5"}'


def test_base64_of_the_url_alphabet_is_read_with_and_without_padding() -> None:
    codec = codec_of(PutRequest.DESCRIPTOR)
    for text in ("-_-_", "_w==", "_w"):
        assert codec.from_json(b'{"key":"%b"}' % text.encode())
    with pytest.raises(JsonError, match="illegal base64 data at input byte 4"):
        codec.from_json(b'{"key":"Zm9vZg"}')


def test_of_several_members_of_a_oneof_the_last_in_order_of_numbers_wins() -> None:
    body = b'{"success":[{"request_put":{"key":"Zg=="},"request_range":{"key":"Zw=="}}]}'
    request = TxnRequest.FromString(codec_of(TxnRequest.DESCRIPTOR).from_json(body))
    assert request.success[0].WhichOneof("request") == "request_put"


def test_lists_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JSON_LIST_ITEMS_MAX", 3)
    with pytest.raises(JsonError, match="list of 4 elements, expected at most 3"):
        codec_of(TxnRequest.DESCRIPTOR).from_json(b'{"success":[{},{},{},{}]}')


def test_deep_nesting_is_refused() -> None:
    body = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    with pytest.raises(JsonError):
        codec_of(PutRequest.DESCRIPTOR).from_json(body)


VALUES = [
    b'{"a":[1,-2.5e+3,"x\\n\\u00e9",true,null,{}]}',
    b"[]",
    b"[[],[{}]]",
    b'"s"',
    b"12",
    b"-0.5",
    b"true",
    b"null",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_of_values_is_cut_the_same_however_it_arrives(size: int) -> None:
    text = b" ".join(VALUES) + b"\n"
    splitter = Splitter()
    found = []
    for start in range(0, len(text), size):
        found += list(splitter.feed(text[start : start + size]).values())
    assert found + splitter.finish() == VALUES


def test_a_last_number_ends_with_the_input() -> None:
    splitter = Splitter()
    assert list(splitter.feed(b" 12").values()) == []
    assert splitter.finish() == [b"12"]
    assert Splitter().feed(b"  ").finish() == []


def test_values_before_a_fault_are_delivered() -> None:
    values = Splitter().feed(b"{}[] x").values()
    assert next(values) == b"{}"
    assert next(values) == b"[]"
    with pytest.raises(JsonError, match="invalid character 'x' looking for beginning of value"):
        next(values)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn\\u \n', max_size=20))
def test_whatever_python_reads_the_splitter_reads_and_the_other_way_round(text: str) -> None:
    splitter = Splitter()
    try:
        found = list(splitter.feed(text.encode()).values()) + splitter.finish()
        assert all(json.loads(value) is not Ellipsis for value in found)
    except JsonError:
        with pytest.raises(ValueError):
            position, decoder = 0, json.JSONDecoder()
            while text[position:].strip(" \n"):
                position += len(text[position:]) - len(text[position:].lstrip(" \n"))
                position = decoder.raw_decode(text, position)[1]


def test_the_first_value_counts_and_the_rest_does_not() -> None:
    assert first_value(b'{"a":1} trailing', 100) == {"a": 1}
    assert first_value(b"  ", 100) is None
    with pytest.raises(JsonError, match="unexpected EOF"):
        first_value(b'{"a":', 100)
    with pytest.raises(JsonError, match="invalid character in JSON"):
        first_value(b'{"a":"' + b"x" * 200, 100)
