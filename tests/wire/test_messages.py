from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.errors import Code
from kvserver.wire.faults import GrpcError
from kvserver.wire.messages import (
    MessageAssembler,
    decode_binary,
    decode_status_message,
    encode_binary,
    encode_status_message,
    format_timeout,
    frame_message,
    parse_timeout,
)


@given(st.text())
def test_status_messages_survive_percent_encoding(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    encoded = encode_status_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert decode_status_message(encoded) == text


def test_status_message_encoding_is_that_of_the_specification() -> None:
    assert encode_status_message("100% ä\n") == b"100%25 %C3%A4%0A"
    assert decode_status_message(b"bad %zz stays") == "bad %zz stays"


@given(st.text(min_size=1), st.integers(1, 50))
def test_cut_status_messages_stay_decodable(text: str, bytes_max: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    encoded = encode_status_message(text, bytes_max)
    assert len(encoded) <= bytes_max
    assert text.startswith(decode_status_message(encoded))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"250m", 0.25), (b"99999999u", 99.999999), (b"5n", 5e-9), (b"0S", 0)],
)
def test_timeouts_are_parsed(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"5", b"-1S", b"123456789S", b"1 S", b"1s", b"\xb2S", b"1.5S"])
def test_malformed_timeouts_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="malformed grpc-timeout"):
        parse_timeout(value)


@given(st.floats(min_value=1e-9, max_value=1e8))
def test_formatted_timeouts_are_never_shorter_and_close(seconds: float) -> None:
    value = format_timeout(seconds)
    assert parse_timeout(value) == pytest.approx(seconds, rel=2e-5, abs=2e-9)


def test_round_timeouts_have_short_constant_forms() -> None:
    assert format_timeout(5.0) == b"5S"
    assert format_timeout(0.25) == b"250m"
    assert format_timeout(0) == b"1n"


@given(st.binary())
def test_binary_metadata_survives(value: bytes) -> None:
    encoded = encode_binary(value)
    assert b"=" not in encoded
    assert decode_binary(encoded) == value
    assert decode_binary(encoded + b"=" * (-len(encoded) % 4)) == value


def test_damaged_binary_metadata_is_named() -> None:
    with pytest.raises(ValueError, match="malformed binary metadata"):
        decode_binary(b"!!!")


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_messages_are_the_same_however_they_are_cut(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(frame_message, bodies))
    assembler = MessageAssembler(100)
    out: list[bytes] = []
    position = 0
    while position < len(stream):
        step = data.draw(st.integers(1, len(stream) - position))
        out += assembler.feed(stream[position : position + step])
        position += step
    assert out == bodies
    assert assembler.held_bytes == 0


def test_byte_by_byte_messages() -> None:
    assembler = MessageAssembler(100)
    out: list[bytes] = []
    for byte in frame_message(b"abc") + frame_message(b"") + frame_message(b"d"):
        out += assembler.feed(bytes((byte,)))
    assert out == [b"abc", b"", b"d"]


def test_too_large_messages_are_refused_when_their_prefix_is_read() -> None:
    assembler = MessageAssembler(100)
    with pytest.raises(GrpcError) as caught:
        list(assembler.feed(frame_message(bytes(101))[:5]))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert caught.value.message == "grpc: received message larger than max (101 vs. 100)"


def test_compressed_messages_are_refused() -> None:
    with pytest.raises(GrpcError) as caught:
        list(MessageAssembler(100).feed(b"\x01\x00\x00\x00\x01x"))
    assert caught.value.code == Code.INTERNAL
