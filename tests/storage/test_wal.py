"""The log in fair weather: what goes in comes out, from any position, over segment borders, after reopening."""

from __future__ import annotations

import errno
import threading
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvserver import limits
from kvserver.storage import (
    OsFileSystem,
    Position,
    StorageFailedError,
    Wal,
    WalError,
    WalOptions,
)
from kvserver.storage.frame import encode_frame, encode_segment_header
from tests.storage.logs import DIRECTORY, METADATA, TINY, Item, create, flat, read, sample_batches, write
from tests.support.simfs import Fault, Loss, SimFileSystem


def test_a_new_log_is_empty_and_knows_its_metadata() -> None:
    fs = SimFileSystem()
    assert not Wal.exists(fs, DIRECTORY)
    create(fs).close()
    assert Wal.exists(fs, DIRECTORY)
    wal = Wal.open(fs, DIRECTORY, TINY)
    assert wal.metadata == METADATA
    assert list(wal.replay()) == []
    assert wal.segment_count == 1


def test_records_come_back_in_order_with_their_types() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    batches = sample_batches(seed=1, count=120)
    for batch in batches:
        write(wal, *batch)
    assert wal.segment_count > 10
    wal.close()
    assert read(fs) == flat(batches)
    assert read(fs) == flat(batches)


def test_replay_from_a_position_begins_with_that_batch() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    batches = sample_batches(seed=2, count=40)
    positions = [write(wal, *batch) for batch in batches]
    assert positions == sorted(set(positions))
    wal.close()
    for number, position in enumerate(positions):
        assert read(fs, position) == flat(batches[number:])
    reopened = Wal.open(fs, DIRECTORY, TINY)
    replayed = list(reopened.replay())
    assert {record.position for record in replayed} == set(positions)
    assert list(reopened.replay(reopened.position)) == []
    write(reopened, (9, b"more"))
    assert [record.payload for record in reopened.replay(positions[-1])][-1] == b"more"


def test_replay_from_what_is_no_position_is_refused() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    position = write(wal, (1, b"x" * 20))
    write(wal, (1, b"y" * 20))
    for wrong in (Position(position.segment, position.offset + 8), Position(1, 1 << 20), Position(7, position.offset)):
        with pytest.raises(WalError, match="restore this member"):
            list(wal.replay(wrong))


def test_writing_goes_on_after_reopening_even_without_a_replay() -> None:
    fs = SimFileSystem()
    write(create(fs), (1, b"first"))
    wal = Wal.open(fs, DIRECTORY, TINY)
    write(wal, (2, b"second"))
    wal = Wal.open(fs, DIRECTORY, TINY)
    assert len(list(wal.replay())) == 2
    write(wal, (3, b"third"))
    assert read(fs) == [(1, b"first"), (2, b"second"), (3, b"third")]


def test_sealing_takes_what_was_appended_since() -> None:
    wal = create(SimFileSystem())
    assert wal.seal() is None
    wal.append(1, b"a")
    wal.append(2, b"bc")
    first = wal.seal()
    wal.append(1, b"d")
    second = wal.seal()
    assert first is not None
    assert second is not None
    assert (len(first), first.payload_bytes, len(second)) == (2, 3, 1)
    assert wal.seal() is None
    wal.write(first)
    wal.write(second)
    assert [record.payload for record in wal.replay()] == [b"a", b"bc", b"d"]


def test_a_record_larger_than_a_segment_makes_its_segment_longer() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    big = Random(3).randbytes(5000)
    items = [(1, b"before"), (1, big), (1, b"after"), (1, big)]
    for item in items:
        write(wal, item)
    wal.close()
    assert read(fs) == items


def test_a_batch_larger_than_a_frame_is_several_frames() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    rng = Random(4)
    items: list[Item] = [(number % 255 + 1, rng.randbytes(rng.randrange(4000))) for number in range(30)]
    first = write(wal, *items)
    wal.close()
    assert read(fs) == items
    assert read(fs, first) == items


def test_records_out_of_bounds_are_refused_before_they_harm() -> None:
    wal = create(SimFileSystem())
    for record_type in (0, 256, -1):
        with pytest.raises(ValueError, match="record type"):
            wal.append(record_type, b"")
    with pytest.raises(ValueError, match="at most"):
        wal.append(1, bytes(TINY.frame_bytes_max))
    assert wal.seal() is None
    with pytest.raises(ValueError, match="compress_bytes_min"):
        WalOptions(compress_bytes_min=4096)
    with pytest.raises(ValueError, match="frame_bytes_max"):
        WalOptions(frame_bytes_max=limits.WAL_FRAME_BYTES_MAX + 1)


def test_compressible_records_take_little_space() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    position = write(wal, (1, b"the same words again " * 300))
    assert wal.position.offset - position.offset < 200


def test_a_release_removes_whole_segments_before_the_position_only() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    batches = sample_batches(seed=5, count=60)
    positions = [write(wal, *batch) for batch in batches]
    keep = 35
    assert wal.release_before(positions[keep]) == positions[keep].segment - 1
    assert wal.release_before(positions[keep]) == 0
    assert wal.first_segment == positions[keep].segment
    wal.close()
    assert read(fs, positions[keep]) == flat(batches[keep:])
    first_kept = next(number for number, position in enumerate(positions) if position.segment == wal.first_segment)
    assert read(fs) == flat(batches[first_kept:])
    with pytest.raises(WalError, match="not 1"):
        read(fs, positions[0])


def test_a_release_never_removes_the_segment_being_written() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    for batch in sample_batches(seed=6, count=30):
        write(wal, *batch)
    wal.release_before(Position(1 << 40, 0))
    assert wal.segment_count == 1
    write(wal, (1, b"still works"))
    wal.close()
    assert read(fs)[-1] == (1, b"still works")


def test_a_release_that_fails_is_logged_and_done_the_next_time(caplog: pytest.LogCaptureFixture) -> None:
    fs = SimFileSystem()
    wal = create(fs)
    for batch in sample_batches(seed=7, count=40):
        write(wal, *batch)
    segments = wal.segment_count
    fs.inject(Fault(nth=3))
    assert wal.release_before(wal.position) == 1
    assert "cannot remove the released segment" in caplog.text
    assert wal.release_before(wal.position) == segments - 2
    write(wal, (1, b"x"))


def test_the_next_segment_is_prepared_before_it_is_needed() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    write(wal, (1, Random(8).randbytes(500)))
    assert "next.tmp" not in fs.listdir(DIRECTORY)
    write(wal, (1, Random(9).randbytes(700)))
    assert "next.tmp" in fs.listdir(DIRECTORY)
    wal.close()
    read(fs)
    assert "next.tmp" not in fs.listdir(DIRECTORY)


def test_creating_over_a_log_and_opening_none_are_refused() -> None:
    fs = SimFileSystem()
    with pytest.raises(WalError, match="no write-ahead log here"):
        Wal.open(fs, DIRECTORY)
    fs.mkdir(DIRECTORY)
    with pytest.raises(WalError, match="no write-ahead log here"):
        Wal.open(fs, DIRECTORY)
    create(fs)
    with pytest.raises(WalError, match="there is a write-ahead log already"):
        create(fs)


def test_a_closed_log_is_not_written() -> None:
    wal = create(SimFileSystem())
    wal.append(1, b"x")
    batch = wal.seal()
    assert batch is not None
    wal.close()
    wal.close()
    with pytest.raises(WalError, match="closed"):
        wal.write(batch)


def test_an_interrupted_write_stops_the_log_for_good() -> None:
    """A later batch must never go out without an earlier one."""
    fs = SimFileSystem()
    wal = create(fs)
    write(wal, (1, b"kept"))
    fs.crash_at(1)
    with pytest.raises(BaseException, match="pwritev"):
        write(wal, (1, b"interrupted"))
    fs.crash_at(None)
    with pytest.raises(StorageFailedError):
        wal.append(1, b"later")
    assert read(fs) == [(1, b"kept")]


def test_what_a_killed_process_left_unsynced_is_durable_once_replayed() -> None:
    """The page cache is read back after a kill; a vote cast on it must survive a power loss."""
    fs = SimFileSystem()
    wal = create(fs)
    write(wal, (1, b"synced"))
    fs.inject(Fault(nth=2, outcome="cached"))  # the sync after the write
    with pytest.raises(StorageFailedError):
        write(wal, (1, b"seen, not synced"))
    fs.restart()
    assert read(fs) == [(1, b"synced"), (1, b"seen, not synced")]
    fs.power_loss(Loss.ALL, Random(0))
    assert read(fs) == [(1, b"synced"), (1, b"seen, not synced")]


def test_a_disk_without_space_stops_the_log_and_a_restart_goes_on() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    fault = fs.inject(Fault(nth=1, error=errno.ENOSPC, sticky=True))
    with pytest.raises(StorageFailedError, match="free some"):
        write(wal, (1, b"x"))
    assert fault.hits
    fs.heal()
    with pytest.raises(StorageFailedError):
        wal.append(1, b"y")
    wal = Wal.open(fs, DIRECTORY, TINY)
    before = [record.payload for record in wal.replay()]
    write(wal, (1, b"z"))
    assert [payload for _, payload in read(fs)] == [*before, b"z"]


def test_the_log_works_on_a_real_file_system_and_is_written_by_a_thread(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fs = OsFileSystem()
    directory = str(tmp_path_factory.mktemp("node") / "member" / "wal")
    wal = Wal.create(fs, directory, METADATA, WalOptions(segment_bytes=32768))
    batches = sample_batches(seed=10, count=200)
    for batch in batches:
        for record_type, payload in batch:
            wal.append(record_type, payload)
        sealed = wal.seal()
        assert sealed is not None
        thread = threading.Thread(target=wal.write, args=(sealed,))
        thread.start()
        thread.join()
    assert wal.segment_count > 1
    wal.close()
    reopened = Wal.open(fs, directory)
    assert [(record.type, record.payload) for record in reopened.replay()] == flat(batches)
    reopened.close()


def crc32c(crc: int, data: bytes) -> int:
    """Castagnoli's CRC, bit by bit: independent of the library in use."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_frame_format_is_what_it_was() -> None:
    """Golden bytes: logs written by an earlier version must stay readable."""
    frame, chain = encode_frame(
        segment=3, offset=48, chain=0x01020304, record_type=7, flags=0, stored=b"hello", raw_bytes=5
    )
    assert frame.hex() == "4b56574c010700000500000005000000b98b7525da2e2a8168656c6c6fffffff"
    assert crc32c(3 * 0x9E3779B1 + 48 & 0xFFFFFFFF, frame[:16]) == int.from_bytes(frame[16:20], "little")
    assert crc32c(crc32c(0x01020304, frame[:16]), b"hello") == int.from_bytes(frame[20:24], "little") == chain
    header, chain = encode_segment_header(1, 0, b"id")
    assert header.hex() == "4b56574c010004000e0000000e000000623cfb0ce294442f0100000000000000000000006964ffff"
    assert crc32c(0, header[:16]) == int.from_bytes(header[16:20], "little")
    assert crc32c(0, header[:16] + header[24:38]) == int.from_bytes(header[20:24], "little") == chain


# -- against a list ----------------------------------------------------------------------------------------------------

items = st.tuples(st.integers(1, 255), st.one_of(st.binary(max_size=900), st.integers(0, 3000).map(bytes)))


class LogAndList(RuleBasedStateMachine):
    """The log and its dumb twin, a list of records with their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = SimFileSystem()
        self.wal = create(self.fs)
        self.durable: list[tuple[Position, Item]] = []
        self.appended: list[Item] = []

    @rule(item=items)
    def append(self, item: Item) -> None:
        self.wal.append(*item)
        self.appended.append(item)

    @precondition(lambda self: self.appended)
    @rule()
    def write(self) -> None:
        batch = self.wal.seal()
        assert batch is not None
        # A batch above a frame's bound is several frames; positions within it are checked by replay only.
        position = self.wal.write(batch)
        self.durable += [(position, item) for item in self.appended]
        self.appended = []

    @rule(loss=st.sampled_from(Loss), seed=st.integers(0, 1 << 16))
    def lose_power(self, loss: Loss, seed: int) -> None:
        self.appended = []
        self.fs.power_loss(loss, Random(seed))
        self.wal = Wal.open(self.fs, DIRECTORY, TINY)
        assert [(record.type, record.payload) for record in self.wal.replay()] == [item for _, item in self.durable]

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def replay_from(self, data: st.DataObject) -> None:
        position = data.draw(st.sampled_from(sorted({position for position, _ in self.durable})))
        wal = Wal.open(self.fs, DIRECTORY, TINY)
        replayed = [(record.type, record.payload) for record in wal.replay(position)]
        assert replayed == [item for at, item in self.durable if at >= position]

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        position = data.draw(st.sampled_from([position for position, _ in self.durable]))
        self.wal.release_before(position)
        first = self.wal.first_segment
        assert first <= position.segment
        # What lies before is a whole number of segments; a batch of several frames may have lost its first ones.
        held = [record.position for record in Wal.open(self.fs, DIRECTORY, TINY).replay()]
        self.durable = [(at, item) for at, item in self.durable if at.segment >= first]
        if len(held) != len(self.durable):
            self.durable = [
                (record.position, (record.type, record.payload))
                for record in Wal.open(self.fs, DIRECTORY, TINY).replay()
            ]

    @invariant()
    def reads_back(self) -> None:
        image = SimFileSystem(self.fs.image())
        assert read(image) == [item for _, item in self.durable]


def test_the_log_equals_a_list_of_records() -> None:
    run_state_machine_as_test(LogAndList, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(items, min_size=1, max_size=4), max_size=12))
def test_any_batches_come_back(batches: list[list[Item]]) -> None:
    fs = SimFileSystem()
    wal = create(fs)
    for batch in batches:
        write(wal, *batch)
    assert read(fs) == flat(batches)
