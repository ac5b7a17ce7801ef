from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HeaderTuple, HPACKDecodingError, NeverIndexedHeaderTuple
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_FAIL, HUFFMAN_TABLE, decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.wire.faults import PeerFaultError
from kvserver.wire.frames import ErrorCode
from kvserver.wire.headers import HeaderDecoder, decode_value

names = st.sampled_from([b":path", b":method", b"te", b"user-agent", b"x-a", b"x-b", b"grpc-timeout", b"n" * 200])
values = st.sampled_from([b"", b"POST", b"/a.B/C", b"5S", b"4999912u", b"v" * 300, b"\xff\xfe", b"trailers"])
field = st.tuples(names, values, st.booleans())


def _split(walked: tuple[tuple[tuple[bytes, bytes], ...], bytes | None, bool]) -> list[tuple[bytes, bytes]]:
    fields, timeout, _ = walked
    rest = list(fields)
    return rest if timeout is None else [*rest, (b"grpc-timeout", timeout)]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.lists(field, min_size=1, max_size=8), st.booleans()), max_size=20), st.data())
def test_walking_and_decoding_agree_over_a_connection(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool]], data: st.DataObject
) -> None:
    encoder = Encoder()
    walker: HeaderDecoder[object] = HeaderDecoder(65536, {})
    decoder: HeaderDecoder[object] = HeaderDecoder(65536, {})
    for fields, huffman in blocks:
        if data.draw(st.integers(0, 9)) == 0:
            encoder.header_table_size = data.draw(st.sampled_from([0, 100, 600, 4096]))
        tuples = [(NeverIndexedHeaderTuple if never else HeaderTuple)(name, value) for name, value, never in fields]
        block = bytes(encoder.encode(tuples, huffman=huffman))
        expected, unchanged = decoder.decode(block)
        assert expected == [(name, value) for name, value, _ in fields]
        walked = walker.walk(block)
        if walked is None:
            assert walker.decode(block) == (expected, unchanged)
        else:
            timeouts = [value for name, value in expected if name == b"grpc-timeout"]
            others = [pair for pair in expected if pair[0] != b"grpc-timeout"]
            assert [pair for pair in walked[0] if pair[0] != b"grpc-timeout"] == others
            if len(timeouts) == 1:
                assert _split(walked).count((b"grpc-timeout", timeouts[0])) == 1
            assert unchanged or not walked[2]
        assert list(walker._entries) == list(decoder._entries)


def test_a_changing_timeout_leaves_the_other_fields_alone() -> None:
    """What grpc-go and node send: the timeout is indexed each time and shifts all other indices."""
    encoder = Encoder()
    decoder: HeaderDecoder[object] = HeaderDecoder(65536, {})
    keys = set()
    blocks = set()
    for n in range(300):
        fields = [(b":method", b"POST"), (b":path", b"/etcdserverpb.KV/Put"), (b"user-agent", b"grpc-go/1.38.0")]
        timeout = b"%du" % (4_999_000 + n)
        block = bytes(encoder.encode([*fields, (b"grpc-timeout", timeout), (b"token", b"abc")]))
        walked = decoder.walk(block)
        assert walked is not None
        assert walked[1] == timeout
        keys.add(walked[0])
        blocks.add(block)
    assert len(keys) == 1
    assert len(blocks) > 250


_common = [(b":method", b"POST"), (b":scheme", b"http"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
_calls = st.tuples(
    st.sampled_from([b"/a.B/C", b"/a.B/D"]),
    st.integers(0, 10**8 - 1),
    st.sampled_from([b"u", b"m", b"S"]),
    st.sampled_from([(), ((b"token", b"t"),), ((b"token", b"t"), (b"x", b"y")), ((b"long", b"v" * 900),)]),
    st.integers(0, 30),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_calls, min_size=1, max_size=60), st.booleans(), st.booleans())
def test_recalled_results_are_those_of_hpack(
    calls: list[tuple[bytes, int, bytes, tuple[tuple[bytes, bytes], ...], int]], huffman: bool, indexed: bool
) -> None:
    encoder = Encoder()
    reference = Decoder()
    decoder: HeaderDecoder[tuple[tuple[bytes, bytes], ...]] = HeaderDecoder(65536, {})
    for path, number, unit, metadata, repeats in calls:
        for repeat in range(repeats + 1):
            fields = [*_common, (b":path", path)]
            timeout = (b"grpc-timeout", b"%d%b" % ((number + repeat * 7) % 10**8, unit))
            if indexed:
                block = bytes(encoder.encode([*fields, timeout, *metadata], huffman=huffman))
            else:
                block = bytes(encoder.encode([*fields, *metadata], huffman=huffman))
                block += b"\x00\x0cgrpc-timeout" + bytes((len(timeout[1]),)) + timeout[1]
            recalled = decoder.recall(block)
            if recalled is not None:
                got = [*recalled[0], (b"grpc-timeout", recalled[1])]
            else:
                walked = decoder.walk(block)
                if walked is None:
                    got = decoder.decode(block)[0]
                else:
                    got = _split(walked)
                    if walked[1] is not None:
                        decoder.remember(walked[0])
            assert sorted(got) == sorted([*fields, timeout, *metadata])
            assert sorted(reference.decode(block, raw=True)) == sorted(got)
            assert list(decoder._entries) == list(reference.header_table.dynamic_entries)


def test_most_blocks_with_a_changing_timeout_are_recalled() -> None:
    encoder = Encoder()
    decoder: HeaderDecoder[object] = HeaderDecoder(65536, {})
    recalled = 0
    for number in range(1000):
        fields = [*_common, (b":path", b"/a.B/C"), (b"grpc-timeout", b"%du" % (4_999_000 + number))]
        block = bytes(encoder.encode(fields))
        if decoder.recall(block) is not None:
            recalled += 1
        else:
            walked = decoder.walk(block)
            assert walked is not None
            decoder.remember(walked[0])
    assert recalled > 700


def test_what_a_byte_does_to_a_huffman_state_depends_on_nothing_else() -> None:
    ends: dict[int, set[bool]] = {}
    for state, flags, _ in HUFFMAN_TABLE:
        if not flags & HUFFMAN_FAIL:
            ends.setdefault(state, set()).add(bool(flags & HUFFMAN_COMPLETE))
    assert all(len(kinds) == 1 for kinds in ends.values())


@given(st.binary(max_size=20))
def test_huffman_values_are_those_of_hpack(data: bytes) -> None:
    try:
        expected: bytes | None = decode_huffman(data)
    except HPACKDecodingError:
        expected = None
    try:
        got: bytes | None = decode_value(data)
    except HPACKDecodingError:
        got = None
    assert got == expected


@given(st.binary(min_size=1, max_size=60))
def test_garbage_is_a_compression_error_or_decodes_alike(block: bytes) -> None:
    outcomes: list[object] = []
    for way in ("walk", "decode"):
        decoder: HeaderDecoder[object] = HeaderDecoder(65536, {})
        try:
            if way == "walk":
                walked = decoder.walk(block)
                got = decoder.decode(block)[0] if walked is None else _split(walked)
            else:
                got = decoder.decode(block)[0]
            outcomes.append(sorted(got))
        except PeerFaultError as error:
            outcomes.append(error.code)
    if outcomes[0] != outcomes[1]:
        # several timeouts in one block are merged by the walk: the last one wins, as in a dict
        assert isinstance(outcomes[1], list)
        assert sum(name == b"grpc-timeout" for name, _ in outcomes[1]) > 1


def test_lists_above_the_limit_are_refused() -> None:
    decoder: HeaderDecoder[object] = HeaderDecoder(1000, {})
    block = bytes(Encoder().encode([(b"x", b"v" * 400)] * 3))
    with pytest.raises(PeerFaultError) as caught:
        decoder.decode(block)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM
    with pytest.raises(PeerFaultError):
        decoder.check_size([(b"x", b"v" * 1000)])


def test_remembered_results_are_dropped_when_the_table_changes() -> None:
    known: dict[bytes, object] = {b"block": 1}
    decoder = HeaderDecoder(65536, known)
    encoder = Encoder()
    decoder.decode(bytes(encoder.encode([(b":method", b"POST")])))
    assert known
    decoder.decode(bytes(encoder.encode([(b"x-new", b"1")])))
    assert not known
    known[b"block"] = 1
    encoder.header_table_size = 0
    decoder.decode(bytes(encoder.encode([(b":method", b"POST")])))
    assert not known
