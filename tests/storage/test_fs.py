"""The seam: the real file system and the simulated one answer alike; modes and lock of the real one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvserver.errors import DataDirError
from kvserver.storage import FileSystem, OsFileSystem
from kvserver.storage import fs as fs_module
from tests.support.simfs import SimFileSystem


@pytest.fixture(params=["os", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "os":
        return OsFileSystem(), str(tmp_path)
    return SimFileSystem(), "/data"


def test_both_file_systems_answer_alike(place: tuple[FileSystem, str]) -> None:
    fs, root = place
    directory = f"{root}/a/b"
    assert not fs.is_dir(directory)
    fs.mkdir(directory)
    fs.mkdir(directory)
    assert fs.is_dir(directory)
    assert fs.listdir(f"{root}/a") == ["b"]
    file = fs.open(f"{directory}/one", create=True)
    with pytest.raises(FileExistsError):
        fs.open(f"{directory}/one", create=True)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{directory}/two")
    with pytest.raises(FileNotFoundError):
        fs.listdir(f"{root}/none")
    assert file.pwritev((b"hello", memoryview(b" world")), 2) == 11
    assert file.pread(100, 0) == b"\0\0hello world"
    assert file.pread(5, 100) == b""
    assert file.pwritev((b"HELLO",), 2, durable=True) == 5
    file.preallocate(64)
    file.preallocate(8)
    assert file.size() == 64
    assert file.pread(100, 2) == b"HELLO world" + bytes(51)
    file.truncate(7)
    file.fdatasync()
    assert file.pread(100, 0) == b"\0\0HELLO"
    fs.fsync_dir(directory)
    reader = fs.open(f"{directory}/one")
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.pwritev((b"x",), 0)
    fs.open(f"{directory}/two", create=True).close()
    fs.rename(f"{directory}/one", f"{directory}/two")
    assert fs.listdir(directory) == ["two"]
    assert reader.pread(100, 2) == b"HELLO"
    fs.unlink(f"{directory}/two")
    with pytest.raises(FileNotFoundError):
        fs.unlink(f"{directory}/two")
    assert fs.listdir(directory) == []
    for opened in (file, reader):
        opened.close()
        opened.close()
    lock = fs.lock(f"{root}/lock")
    with pytest.raises(DataDirError, match="in use by"):
        fs.lock(f"{root}/lock")
    lock.release()
    lock.release()
    fs.lock(f"{root}/lock").release()


def test_directories_are_0700_and_files_0600_whatever_the_umask(tmp_path: Path) -> None:
    fs = OsFileSystem()
    old = os.umask(0)
    try:
        fs.mkdir(f"{tmp_path}/x/y")
        fs.open(f"{tmp_path}/x/y/file", create=True).close()
        fs.lock(f"{tmp_path}/x/lock").release()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "x" / "y").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "x" / "y" / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "x" / "lock").stat().st_mode) == 0o600


def test_a_second_process_is_told_who_holds_the_data_directory(tmp_path: Path) -> None:
    path = f"{tmp_path}/lock"
    lock = OsFileSystem().lock(path)
    program = (
        "from kvserver.storage import OsFileSystem\n"
        "from kvserver.errors import DataDirError\n"
        f"try: OsFileSystem().lock({path!r})\n"
        "except DataDirError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert f"{path}: the directory is in use by process {os.getpid()}" in answer.stdout
    lock.release()
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout == ""
    OsFileSystem().lock(path).release()  # the process that ended gave it up


def test_a_system_without_durable_writes_in_one_call_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def refuse_flags(fd: int, buffers: list[bytes], offset: int, flags: int = 0) -> int:
        calls.append(f"pwritev {flags}")
        if flags:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return pwritev(fd, buffers, offset)

    def note(fd: int) -> None:
        calls.append("fdatasync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", refuse_flags)
    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(fs_module._write_flags, "dsync", 2)
    file = OsFileSystem().open(f"{tmp_path}/file", create=True)
    assert file.pwritev((b"abc",), 0, durable=True) == 3
    assert file.pwritev((b"d",), 3, durable=True) == 1
    assert file.pread(10, 0) == b"abcd"
    file.close()
    assert calls == ["pwritev 2", "pwritev 0", "fdatasync", "pwritev 0", "fdatasync"]
