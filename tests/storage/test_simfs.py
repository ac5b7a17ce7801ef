"""The simulated disk is itself checked: a broken one would pass everything."""

from __future__ import annotations

import errno
from random import Random

import pytest

from tests.support.simfs import Disk, Fault, Image, Loss, PowerLossError, SimFileSystem, crash_points


def test_only_what_was_synced_survives_the_worst() -> None:
    fs = SimFileSystem()
    file = fs.open("/data/f", create=True)
    file.pwritev((b"durable",), 0, durable=True)
    fs.power_loss(Loss.ALL, Random(0))
    assert fs.listdir("/data") == []  # the entry was never synced

    fs = SimFileSystem()
    file = fs.open("/data/f", create=True)
    fs.fsync_dir("/data")
    file.pwritev((b"durable",), 0, durable=True)
    file.pwritev((b"lost",), 7)
    assert fs.image().files == {"/data/f": b"durablelost"}
    fs.power_loss(Loss.ALL, Random(0))
    assert fs.image().files == {"/data/f": b"durable"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pread(1, 0)


def test_a_sync_covers_its_file_only_and_a_durable_write_its_bytes_only() -> None:
    fs = SimFileSystem()
    one, two = fs.open("/data/1", create=True), fs.open("/data/2", create=True)
    fs.fsync_dir("/data")
    one.pwritev((b"a",), 0)
    two.pwritev((b"b",), 0)
    two.pwritev((b"c",), 1, durable=True)
    one.fdatasync()
    assert fs.disk.after(()).files == {"/data/1": b"a", "/data/2": b"\0c"}


def test_a_rename_is_atomic_and_undone_without_its_sync() -> None:
    fs = SimFileSystem(Image({"/data/a": b"new", "/data/b": b"old"}, ("/data",)))
    fs.rename("/data/a", "/data/b")
    images = {tuple(image.files.items()) for image in fs.disk.power_losses()}
    assert images == {(("/data/a", b"new"), ("/data/b", b"old")), (("/data/b", b"new"),)}


def test_a_failed_sync_loses_what_a_second_one_cannot_bring_back() -> None:
    fs = SimFileSystem(Image({"/data/f": b""}, ("/data",)))
    file = fs.open("/data/f", write=True)
    file.pwritev((b"x",), 0)
    fs.inject(Fault(nth=1))
    with pytest.raises(OSError, match="Input/output error"):
        file.fdatasync()
    file.fdatasync()
    assert file.pread(1, 0) == b"x"
    fs.power_loss(Loss.ALL, Random(0))
    assert fs.image().files == {"/data/f": b""}


def test_losses_enumerate_suffixes_tears_and_sectors() -> None:
    fs = SimFileSystem(Image({"/data/f": bytes(2048)}, ("/data",)))
    fs.open("/data/f", write=True).pwritev((b"x" * 1536,), 0)
    contents = {image.files["/data/f"].rstrip(b"\0") for image in fs.disk.power_losses()}
    assert {b"", b"x" * 512, b"x" * 1024, b"x" * 1536, b"x" * 24, b"x" * 1535} <= contents
    assert bytes(512) + b"x" * 1024 in contents
    assert b"x" * 512 + bytes(512) + b"x" * 512 in contents


@pytest.mark.parametrize("loss", Loss)
def test_a_random_loss_is_a_function_of_its_seed(loss: Loss) -> None:
    def lose(seed: int) -> Image:
        fs = SimFileSystem()
        for number in range(5):
            fs.open(f"/data/{number}", create=True).pwritev((Random(number).randbytes(3000),), 100)
        fs.power_loss(loss, Random(seed))
        return fs.image()

    assert lose(1) == lose(1)
    if loss in (Loss.SUFFIX, Loss.SECTORS):
        assert any(lose(1) != lose(seed) for seed in range(2, 8))


def test_faults_strike_once_or_from_then_on_and_space_only_where_it_is_needed() -> None:
    fs = SimFileSystem(Image({"/data/f": b"abc"}, ("/data",)))
    file = fs.open("/data/f", write=True)
    once = fs.inject(Fault(nth=2))
    file.pread(1, 0)
    with pytest.raises(OSError, match="Input/output"):
        file.pread(1, 0)
    file.pread(1, 0)
    assert once.hits == 1
    fs.heal()
    full = fs.inject(Fault(nth=1, error=errno.ENOSPC, sticky=True))
    assert file.pread(1, 0) == b"a"
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.preallocate(100)
    assert full.hits == 2
    fs.heal()
    fs.inject(Fault(nth=1, short=True))
    assert file.pwritev((b"1234",), 0) == 2


def test_a_crash_comes_before_the_operation_has_an_effect() -> None:
    fs = SimFileSystem(Image({"/data/f": b""}, ("/data",)))
    file = fs.open("/data/f", write=True)
    fs.crash_at(2)
    with pytest.raises(PowerLossError):
        file.pwritev((b"x",), 0, durable=True)  # written, not synced
    assert {image.files["/data/f"] for image in fs.disk.power_losses()} == {b"", b"x"}


def test_crash_points_carry_the_marks_before_them() -> None:
    fs = SimFileSystem(record=True)
    fs.open("/data/f", create=True)
    fs.fsync_dir("/data")
    fs.mark("made")
    assert fs.journal is not None
    points = [(tuple(marks), "/data/f" in image.files) for marks, image in crash_points(fs.journal)]
    assert ((), False) in points
    assert ((), True) in points
    assert (("made",), True) in points
    assert (("made",), False) not in points


def test_a_disk_made_of_an_image_holds_it() -> None:
    image = Image({"/data/a": b"1", "/data/d/b": b"2"}, ("/data", "/data/d"))
    assert Disk(image).seen() == image
    assert Disk(image).power_loss(Loss.ALL, Random(0)) == image
    assert image.with_file("/data/a", b"3").without("/data/d/b").files == {"/data/a": b"3"}
    assert SimFileSystem(image).listdir("/data") == ["a", "d"]
