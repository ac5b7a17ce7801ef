"""The dump command: what an operator sees, and its exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from kvserver.storage import Snapshotter, Wal, WalOptions
from kvserver.storage.dump import dump, main
from kvserver.storage.fs import OsFileSystem
from kvserver.storage.wal import segment_path
from tests.storage.logs import DIRECTORY, create, sample_batches, write
from tests.support.simfs import SimFileSystem


def dumped(fs: SimFileSystem, *, records: bool = True) -> tuple[int, str]:
    out = io.StringIO()
    return dump(fs, "/data", out, records=records), out.getvalue()


def test_a_sound_data_directory_is_printed_and_not_changed() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    batches = sample_batches(seed=70, count=30)
    for batch in batches:
        write(wal, *batch)
    writer = Snapshotter(fs, "/data/member/snap").create(12, 3)
    writer.write(b"state")
    writer.commit()
    before = fs.image()
    code, text = dumped(fs)
    assert code == 0
    assert fs.image() == before
    assert text.count("crc ok") == sum(len(batch) for batch in batches) + 1
    assert f"log {DIRECTORY}: {wal.segment_count} segments" in text
    assert "index 12, term 3" in text
    assert "1 chunks of 5 bytes" in text
    assert f"end at byte {wal.position.offset}" in text
    assert "DAMAGED" not in text
    assert dumped(fs, records=False)[1].count("crc ok") == 1


def test_damage_is_printed_with_its_place_and_exit_code_1() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    for batch in sample_batches(seed=71, count=30):
        write(wal, *batch)
    fs.flip(segment_path(DIRECTORY, 2), 90, 1)
    code, text = dumped(fs)
    assert code == 1
    assert f"DAMAGED: {segment_path(DIRECTORY, 2)}: damaged at byte" in text
    assert "segment 3" in text  # the rest is printed all the same
    fs.flip(segment_path(DIRECTORY, 2), 90, 1)
    fs.unlink(segment_path(DIRECTORY, 2))
    code, text = dumped(fs)
    assert code == 1
    assert "frames or a whole segment are missing" in text


def test_a_torn_tail_is_no_damage() -> None:
    fs = SimFileSystem()
    wal = create(fs)
    write(wal, (1, b"x" * 100))
    fs.disk.inodes[fs.disk.find(segment_path(DIRECTORY, 1))].content[wal.position.offset - 20 :] = bytes(2048)
    code, text = dumped(fs)
    assert code == 0
    assert "torn tail at byte" in text


def test_a_damaged_snapshot_and_one_set_aside_are_printed() -> None:
    fs = SimFileSystem()
    snapshotter = Snapshotter(fs, "/data/snap")
    for index in (1, 2):
        writer = snapshotter.create(index, 1)
        writer.write(b"state" * 20)
        info = writer.commit()
    fs.flip(f"/data/snap/{info.name}", 50, 0)
    code, text = dumped(fs)
    assert code == 1
    assert "DAMAGED" in text
    snapshotter.newest_valid()
    code, text = dumped(fs)
    assert code == 0
    assert "set aside earlier" in text


def test_the_command_runs_on_a_directory(tmp_path: Path) -> None:
    wal = Wal.create(OsFileSystem(), f"{tmp_path}/member/wal", b"m", WalOptions(segment_bytes=4096))
    write(wal, (5, b"payload"))
    wal.close()
    answer = subprocess.run(
        [sys.executable, "-m", "kvserver.storage.dump", str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    assert answer.returncode == 0
    assert "type 5           7 bytes  raw   crc ok" in answer.stdout


def test_nothing_to_read_is_exit_code_2(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([f"{tmp_path}/none"]) == 2
