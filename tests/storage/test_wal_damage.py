"""Damage: durable bytes that changed are refused, with file, byte and advice; they are never served as records."""

from __future__ import annotations

from random import Random

import pytest

from kvserver.storage import CorruptionError, Position, StorageFailedError, Wal, WalError
from kvserver.storage.frame import MAGIC_BYTES, encode_frame, encode_segment_header
from kvserver.storage.wal import segment_path
from tests.storage.logs import DIRECTORY, METADATA, TINY, Item, create, flat, read, sample_batches, write
from tests.support.simfs import Image, SimFileSystem

FIRST = segment_path(DIRECTORY, 1)


def log_of(*batches: list[Item]) -> tuple[SimFileSystem, Wal]:
    fs = SimFileSystem()
    wal = create(fs)
    for batch in batches:
        write(wal, *batch)
    return fs, wal


def segments_log() -> tuple[Image, list[Item], int]:
    """An image with several segments."""
    batches = sample_batches(seed=30, count=40)
    fs, wal = log_of(*batches)
    wal.close()
    return fs.image().without(f"{DIRECTORY}/next.tmp"), flat(batches), wal.segment_count


def recover(image: Image) -> list[Item]:
    return read(SimFileSystem(image))


def attempt(image: Image) -> list[Item] | WalError | CorruptionError:
    """What a recovery gives: records, or the error it refuses with."""
    try:
        return recover(image)
    except (WalError, CorruptionError) as error:
        return error


def flipped(content: bytes, byte: int, mask: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ mask]) + content[byte + 1 :]


def test_a_flipped_bit_anywhere_is_refused_or_lies_in_the_unwritten_tail() -> None:
    """Within what was acknowledged every flip is refused; behind it, it is cut off or refused. Never another record."""
    rng = Random(31)
    batches: list[list[Item]] = [
        [(1, b"first")],
        [(2, rng.randbytes(480))],
        [(1, b""), (3, b"two"), (255, b"\0" * 9)],
        [(1, b"compress me " * 90)],
        [(1, rng.randbytes(300))],
        [(4, b"\0" * 400)],
    ]
    fs, wal = log_of(*batches)
    image, end, records = fs.image(), wal.position.offset, flat(batches)
    content = image.files[FIRST]
    refused = cut = 0
    for byte in range(len(content)):
        for mask in (1 << rng.randrange(8), 0xFF):
            outcome = attempt(image.with_file(FIRST, flipped(content, byte, mask)))
            if isinstance(outcome, CorruptionError):
                assert outcome.path == FIRST
                assert 0 <= outcome.offset <= max(byte, 24)
                assert f"{FIRST}: damaged at byte {outcome.offset}" in str(outcome)
                assert "Restore this member" in str(outcome)
            elif isinstance(outcome, WalError):
                assert FIRST in str(outcome)
                assert byte < 24
            else:
                # The trailer's very last byte, when turned to zero, looks as if it had never been written.
                assert byte >= end or (byte == end - 1 and mask == 0xFF), f"byte {byte} of {end} was served"
                assert outcome == (records if byte >= end else records[:-1])
                cut += 1
                continue
            refused += 1
    assert refused >= 2 * end - 1
    assert cut > 0


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_over_random_stretches_are_never_served(seed: int) -> None:
    rng = Random(seed)
    batches = sample_batches(seed=40 + seed, count=8)
    fs, wal = log_of(*batches)
    image, records = fs.image(), flat(batches)
    for _ in range(150):
        path = rng.choice([path for path in image.files if path.endswith(".wal")])
        content = image.files[path]
        start = rng.randrange(len(content))
        length = rng.choice((1, 2, 8, 24, 100, 512))
        damaged = image.with_file(path, content[:start] + rng.randbytes(length) + content[start + length :])
        try:
            served = recover(damaged)
        except (WalError, CorruptionError):
            continue
        if path == segment_path(DIRECTORY, wal.position.segment) and start + length > wal.position.offset - 8:
            assert served == records[: len(served)]
        else:
            assert served == records


def test_a_zeroed_sector_in_the_middle_is_refused() -> None:
    fs, wal = log_of(*([(1, Random(number).randbytes(200))] for number in range(7)))
    image = fs.image()
    content = image.files[FIRST]
    for sector in range(0, wal.position.offset - 512 - 232, 512):
        damaged = content[:sector] + bytes(512) + content[sector + 512 :]
        with pytest.raises(CorruptionError) as caught:
            recover(image.with_file(FIRST, damaged))
        assert caught.value.offset <= max(sector, 24)


def test_a_misdirected_write_is_refused() -> None:
    """A sound frame that lies where another belongs, even one of the same length."""
    fs, wal = log_of()
    positions = [write(wal, (1, bytes([number]) * 40)) for number in range(5)]
    image = fs.image()
    content = image.files[FIRST]
    frames = [content[position.offset : position.offset + 72] for position in positions]
    for number in range(5):
        for other in range(5):
            if number == other:
                continue
            at = positions[number].offset
            with pytest.raises(CorruptionError) as caught:
                recover(image.with_file(FIRST, content[:at] + frames[other] + content[at + 72 :]))
            assert caught.value.offset == at


def test_a_frame_of_another_log_is_refused() -> None:
    """A sound frame at its place, but not the one that follows: an old sector came back."""
    fs, wal = log_of([(1, b"a" * 40)], [(1, b"b" * 40)], [(1, b"c" * 40)])
    other, _ = log_of([(1, b"x" * 40)], [(1, b"y" * 40)], [(1, b"z" * 40)])
    image = fs.image()
    content = image.files[FIRST]
    at = wal.position.offset - 72
    with pytest.raises(CorruptionError, match="all its sectors were written"):
        recover(image.with_file(FIRST, content[:at] + other.image().files[FIRST][at : at + 72] + content[at + 72 :]))


def test_a_log_stored_as_a_value_is_not_taken_for_frames() -> None:
    """Bytes of a log inside a payload do not make a torn frame look like damage."""
    inner, _ = log_of([(1, b"inner" * 20)], [(1, b"inner" * 20)])
    value = inner.image().files[FIRST][:400]
    assert MAGIC_BYTES in value
    fs, wal = log_of([(1, b"kept")])
    start = wal.position.offset
    write(wal, (1, value))
    image = fs.image()
    content = image.files[FIRST]
    for end in range(start + 1, wal.position.offset):
        torn = content[:end] + bytes(len(content) - end)
        assert recover(image.with_file(FIRST, torn)) == [(1, b"kept")]


@pytest.mark.parametrize("which", ["second", "middle"])
def test_a_missing_segment_is_named(which: str) -> None:
    image, _, count = segments_log()
    assert count >= 5
    sequence = 2 if which == "second" else count - 2
    with pytest.raises(CorruptionError, match="no such file") as caught:
        recover(image.without(segment_path(DIRECTORY, sequence)))
    assert caught.value.path == segment_path(DIRECTORY, sequence)


def test_a_renamed_or_copied_segment_is_refused() -> None:
    image, _, count = segments_log()
    source = segment_path(DIRECTORY, 2)
    for target, base in (
        (segment_path(DIRECTORY, count + 1), image),
        (segment_path(DIRECTORY, count + 1), image.without(source)),
        (segment_path(DIRECTORY, 3), image),
    ):
        with pytest.raises(CorruptionError):
            recover(base.with_file(target, image.files[source]))
    swapped = image.with_file(source, image.files[segment_path(DIRECTORY, 3)])
    with pytest.raises(CorruptionError, match="renamed or copied") as caught:
        recover(swapped.with_file(segment_path(DIRECTORY, 3), image.files[source]))
    assert caught.value.path == source


def test_a_segment_of_another_log_is_refused() -> None:
    image, _, _ = segments_log()
    batches = sample_batches(seed=99, count=40)
    fs, _ = log_of(*batches)
    path = segment_path(DIRECTORY, 3)
    with pytest.raises(CorruptionError, match="chain CRC"):
        recover(image.with_file(path, fs.image().files[path]))
    foreign = SimFileSystem()
    wal = Wal.create(foreign, DIRECTORY, b"cluster 7", TINY)
    for batch in batches:
        write(wal, *batch)
    with pytest.raises(CorruptionError, match="metadata"):
        recover(image.with_file(path, foreign.image().files[path]))


@pytest.mark.parametrize("where", ["header", "frame", "all but the last byte", "empty"])
def test_a_truncated_segment_that_is_not_the_last_is_refused(where: str) -> None:
    image, _, _ = segments_log()
    path = segment_path(DIRECTORY, 2)
    content = image.files[path]
    used = len(content.rstrip(b"\0"))
    size = {"header": 20, "frame": used // 2, "all but the last byte": used - 1, "empty": 0}[where]
    with pytest.raises(CorruptionError) as caught:
        recover(image.with_file(path, content[:size]))
    assert caught.value.path == path


def test_frames_missing_at_the_end_of_a_segment_are_noticed_by_the_next() -> None:
    fs, wal = log_of()
    positions: list[Position] = []
    while wal.segment_count < 3:
        positions.append(write(wal, (1, Random(len(positions)).randbytes(100))))
    image = fs.image()
    path = segment_path(DIRECTORY, 2)
    last = max(position for position in positions if position.segment == 2)
    content = image.files[path]
    with pytest.raises(CorruptionError, match="chain CRC") as caught:
        recover(image.with_file(path, content[: last.offset] + bytes(len(content) - last.offset)))
    assert (caught.value.path, caught.value.offset) == (path, last.offset)


def test_bytes_behind_the_end_of_a_segment_that_others_follow_are_refused() -> None:
    image, _, _ = segments_log()
    path = segment_path(DIRECTORY, 2)
    content = image.files[path]
    used = len(content.rstrip(b"\0"))
    assert used < len(content)
    with pytest.raises(CorruptionError, match="in a segment that others follow") as caught:
        recover(image.with_file(path, flipped(content, len(content) - 1, 1)))
    assert (caught.value.path, caught.value.offset) == (path, used)


def test_a_damaged_header_of_the_last_segment_is_refused() -> None:
    """A segment gets its name after its header is durable: no power loss leaves a half header."""
    image, _, count = segments_log()
    path = segment_path(DIRECTORY, count)
    content = image.files[path]
    for damaged in (b"", content[:10], bytes(len(content)), content[:24] + bytes(len(content) - 24)):
        with pytest.raises(CorruptionError) as caught:
            recover(image.with_file(path, damaged))
        assert caught.value.path == path


def test_foreign_files_are_told_apart_from_damage() -> None:
    image, _, _ = segments_log()
    with pytest.raises(WalError, match="not a WAL segment: expected magic 4b56574c at byte 0"):
        recover(image.with_file(FIRST, b"SQLite format 3\0" * 100))
    with pytest.raises(WalError, match="not the name of a WAL segment"):
        recover(image.with_file(f"{DIRECTORY}/0000000000000000-0000000000000000.wal", b"etcd"))
    assert recover(image.with_file(f"{DIRECTORY}/notes.txt", b"ignored")) == recover(image)


def test_another_format_version_is_named() -> None:
    from kvserver.storage.frame import CRCS, HEAD, crc32c_extend

    header, chain = encode_segment_header(1, 0, METADATA)
    head = bytearray(header[: HEAD.size])
    head[4] = 9
    newer = bytes(head) + CRCS.pack(crc32c_extend(0, bytes(head)), chain) + header[24:]
    image = Image({FIRST: newer.ljust(2048, b"\0")}, ("/data", "/data/member", DIRECTORY))
    with pytest.raises(WalError, match="format version 9 at byte 4, this program reads version 1"):
        recover(image)


@pytest.mark.parametrize(
    ("flags", "stored", "raw_bytes", "expected"),
    [
        (1, b"no zstd frame", 100, CorruptionError),
        (0, b"abc", 4, CorruptionError),
        (2, b"\x01\xff\xff\xff\xff", 5, CorruptionError),
        (2, b"\x01\x00", 2, CorruptionError),
        (4, b"abc", 3, CorruptionError),
        (64, b"abc", 3, WalError),
        (1, b"abc", 1 << 31, WalError),
    ],
)
def test_a_frame_whose_checksum_fits_its_nonsense_is_refused(
    flags: int, stored: bytes, raw_bytes: int, expected: type[Exception]
) -> None:
    """A forged or foreign-made frame: bounded, and an error of ours."""
    fs, wal = log_of([(1, b"x")])
    at = wal.position.offset
    image = fs.image()
    content = image.files[FIRST]
    frame, _ = encode_frame(1, at, wal._chain, 1, flags, stored, raw_bytes)
    with pytest.raises(expected):
        recover(image.with_file(FIRST, content[:at] + frame + content[at + len(frame) :]))


def test_a_decompression_bomb_is_not_inflated() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    fs, wal = log_of([(1, b"x")])
    at = wal.position.offset
    image = fs.image()
    content = image.files[FIRST]
    for raw_bytes in (100, 50 << 20):
        frame, _ = encode_frame(1, at, wal._chain, 1, 1, bomb, raw_bytes)
        damaged = image.with_file(FIRST, content[:at] + frame + bytes(4096))
        if raw_bytes == 100:
            with pytest.raises(CorruptionError, match="52428800"):
                recover(damaged)
        else:
            assert len(recover(damaged)[-1][1]) == raw_bytes


def test_damage_changes_nothing_on_disk() -> None:
    """A refused log is evidence: it is left as it is, the torn tail included."""
    batches = sample_batches(seed=50, count=10)
    fs, _ = log_of(*batches)
    image = fs.image().without(f"{DIRECTORY}/next.tmp")
    for path in (segment_path(DIRECTORY, 1), segment_path(DIRECTORY, 2)):
        damaged = SimFileSystem(image.with_file(path, flipped(image.files[path], 100, 4)))
        before = damaged.image()
        with pytest.raises(CorruptionError):
            read(damaged)
        assert damaged.image() == before


def test_an_unreadable_disk_is_not_taken_for_an_empty_log() -> None:
    from tests.support.simfs import Fault

    fs, _ = log_of([(1, b"x")])
    nth = 1
    while True:
        again = SimFileSystem(fs.image())
        fault = again.inject(Fault(nth=nth))
        try:
            served = read(again)
        except StorageFailedError:
            pass
        else:
            assert served == [(1, b"x")]
        if not fault.hits:
            break
        nth += 1
    assert nth > 10
