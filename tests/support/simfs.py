"""A file system in memory that can lose, tear, flip and fail: the storage seam's other implementation.

Three layers, each usable alone:

- :class:`Disk` is the state: for each file what programs see, what is durable, and the changes in between, in order;
  the same for directory entries. It changes by operations (plain tuples) and can tell what a power loss might leave.
- :class:`SimFileSystem` is a ``FileSystem`` over a disk: handles, locks, faults at the n-th operation, and a journal of
  the operations for those who want to enumerate every crash point (:func:`crash_points`).
- An *image* is what a disk holds after a power loss: directories and the content of files.

No clock, no randomness of its own (``random.Random`` is an argument), no dependence on hash order: equal calls give
equal disks. What durable means follows the seam: a durable write covers its own bytes; fdatasync covers a file;
fsync_dir covers the entries of a directory; nothing else covers anything. A failed sync loses: what it should have made
durable stays visible until the power goes, and a second sync that succeeds does not bring it back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Literal

from kvserver.errors import DataDirError
from kvserver.storage.fs import FileSystem

SECTOR_BYTES = 512


class PowerLossError(BaseException):
    """The power went in the middle of an operation. Not an ``Exception``: no code under test may handle it."""


@dataclass(frozen=True, slots=True)
class Image:
    """What lies on a disk: files with their content, and directories."""

    files: dict[str, bytes] = field(default_factory=dict)
    directories: tuple[str, ...] = ()

    def with_file(self, path: str, content: bytes) -> Image:
        """This image with one file's content replaced."""
        return Image({**self.files, path: content}, self.directories)

    def without(self, path: str) -> Image:
        """This image with one file gone."""
        return Image({name: content for name, content in self.files.items() if name != path}, self.directories)


# -- operations and changes -------------------------------------------------------------------------------------------

# An operation is one of these tuples; the journal is a list of them.
Operation = (
    tuple[Literal["create"], str, int]  # path, new inode
    | tuple[Literal["rename"], str, str]
    | tuple[Literal["unlink"], str]
    | tuple[Literal["mkdir"], str]
    | tuple[Literal["write"], int, int, bytes]  # inode, offset, data
    | tuple[Literal["resize"], int, int]  # inode, size
    | tuple[Literal["sync"], int]  # inode
    | tuple[Literal["sync_range"], int, int, int]  # inode, start, end
    | tuple[Literal["sync_dir"], str]
    | tuple[Literal["lose"], int]  # inode: a sync failed, what is pending will never be durable
    | tuple[Literal["mark"], object]  # no effect: something the test wants to find again, an acknowledgement
)


class Change:
    """Something that was done and is not durable yet. ``target`` is an inode number or a directory path."""

    __slots__ = ("data", "entries", "offset", "size", "target")

    def __init__(
        self,
        target: int | str,
        *,
        offset: int = 0,
        data: bytes | None = None,
        size: int | None = None,
        entries: tuple[tuple[str, int | None], ...] = (),
    ) -> None:
        self.target = target
        self.offset = offset
        self.data = data
        self.size = size
        self.entries = entries

    def apply(self, content: bytearray) -> None:
        """Carries a file's change out."""
        if self.data is not None:
            end = self.offset + len(self.data)
            if self.offset > len(content):
                content.extend(bytes(self.offset - len(content)))
            content[self.offset : end] = self.data
        elif self.size is not None:
            if self.size < len(content):
                del content[self.size :]
            else:
                content.extend(bytes(self.size - len(content)))

    def part(self, start: int, end: int) -> Change:
        """The part of a write that lies in ``[start, end)`` of the file."""
        assert self.data is not None
        start, end = max(start, self.offset), min(end, self.offset + len(self.data))
        return Change(self.target, offset=start, data=self.data[start - self.offset : end - self.offset])

    def sectors(self) -> list[Change]:
        """A write, sector by sector."""
        assert self.data is not None
        first = self.offset // SECTOR_BYTES * SECTOR_BYTES
        return [
            self.part(start, start + SECTOR_BYTES) for start in range(first, self.offset + len(self.data), SECTOR_BYTES)
        ]


class _Inode:
    """A file's content: seen, durable, and the changes that lead from the one to the other."""

    __slots__ = ("content", "durable", "pending")

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.durable = bytearray(content)
        self.pending: list[tuple[int, Change]] = []


class _Directory:
    """A directory's entries, likewise."""

    __slots__ = ("durable", "entries", "pending")

    def __init__(self) -> None:
        self.entries: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.pending: list[tuple[int, Change]] = []


class Loss(Enum):
    """What a power loss takes of what was not synced."""

    ALL = "all"
    """Everything."""
    SUFFIX = "suffix"
    """A suffix of all changes in order, the change at the cut torn at any byte."""
    SECTORS = "sectors"
    """Any set of sectors and of directory changes."""
    NOTHING = "nothing"
    """Nothing: everything reached the disk just in time."""


class Disk:
    """State and durability of files and directories; see the module."""

    def __init__(self, image: Image | None = None) -> None:
        self.inodes: dict[int, _Inode] = {}
        self.directories: dict[str, _Directory] = {}
        self._changes = 0
        self._next_inode = 1
        for path in image.directories if image else ():
            self.directories[path] = _Directory()
        for path, content in image.files.items() if image else ():
            directory, name = os.path.split(path)
            inode = self.allocate()
            self.inodes[inode] = _Inode(content)
            self.directories[directory].entries[name] = self.directories[directory].durable[name] = inode

    def allocate(self) -> int:
        """A fresh inode number."""
        self._next_inode += 1
        return self._next_inode - 1

    def find(self, path: str) -> int:
        """The inode at a path; ``FileNotFoundError`` if there is none."""
        directory, name = os.path.split(path)
        inode = self.directory(directory).entries.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return inode

    def directory(self, path: str) -> _Directory:
        """A directory; ``FileNotFoundError`` if there is none."""
        found = self.directories.get(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return found

    # Hot in simulations: one call an operation.
    def apply(self, operation: Operation) -> None:
        """Carries an operation out."""
        match operation:
            case ("write", inode, offset, data):
                self._change(inode, Change(inode, offset=offset, data=data))
            case ("sync_range", inode, start, end):
                self._sync_range(self.inodes[inode], start, end)
            case ("sync", inode):
                file = self.inodes[inode]
                for _, change in file.pending:
                    change.apply(file.durable)
                file.pending.clear()
            case ("resize", inode, size):
                self._change(inode, Change(inode, size=size))
            case ("lose", inode):
                self.inodes[inode].pending.clear()
            case ("create", path, inode):
                self.inodes[inode] = _Inode()
                self._next_inode = max(self._next_inode, inode + 1)
                self._relink(os.path.dirname(path), ((os.path.basename(path), inode),))
            case ("rename", source, target):
                directory = os.path.dirname(source)
                if os.path.dirname(target) != directory:
                    raise ValueError(f"rename across directories: {source} to {target}")
                name = os.path.basename(source)
                self._relink(directory, ((name, None), (os.path.basename(target), self.find(source))))
            case ("unlink", path):
                self.find(path)
                self._relink(os.path.dirname(path), ((os.path.basename(path), None),))
            case ("sync_dir", path):
                directory_ = self.directory(path)
                directory_.durable = dict(directory_.entries)
                directory_.pending.clear()
            case ("mkdir", path):
                self.directories.setdefault(path, _Directory())
            case ("mark", _):
                pass

    def _change(self, inode: int, change: Change) -> None:
        file = self.inodes[inode]
        change.apply(file.content)
        self._changes += 1
        file.pending.append((self._changes, change))

    def _relink(self, path: str, entries: tuple[tuple[str, int | None], ...]) -> None:
        directory = self.directory(path)
        _link(directory.entries, entries)
        self._changes += 1
        directory.pending.append((self._changes, Change(path, entries=entries)))

    @staticmethod
    def _sync_range(file: _Inode, start: int, end: int) -> None:
        """A durable write's effect: the range, and the size that is needed to read it."""
        if not file.pending:
            return
        kept = []
        for item in file.pending:
            change = item[1]
            if change.data is not None and (change.offset >= end or change.offset + len(change.data) <= start):
                kept.append(item)
            else:
                change.apply(file.durable)
        file.pending = kept

    # -- power loss ---------------------------------------------------------------------------------------------------

    def seen(self) -> Image:
        """What programs see: what is left if nothing is lost."""
        return self._image(lambda file: bytes(file.content), lambda directory: directory.entries)

    def pending(self) -> list[Change]:
        """All changes that are not durable, in the order they were made."""
        items = [item for file in self.inodes.values() for item in file.pending]
        items += [item for directory in self.directories.values() for item in directory.pending]
        items.sort(key=lambda item: item[0])
        return [change for _, change in items]

    def after(self, survivors: Iterable[Change]) -> Image:
        """What lies on the disk if of the changes in flight just these survive, in this order."""
        contents: dict[int, bytearray] = {}
        links: dict[str, dict[str, int]] = {}
        for change in survivors:
            if isinstance(change.target, int):
                if change.target not in contents:
                    contents[change.target] = bytearray(self.inodes[change.target].durable)
                change.apply(contents[change.target])
            else:
                if change.target not in links:
                    links[change.target] = dict(self.directories[change.target].durable)
                _link(links[change.target], change.entries)
        files = {}
        for path, directory in self.directories.items():
            for name, inode in sorted(links.get(path, directory.durable).items()):
                content = contents.get(inode)
                files[f"{path}/{name}"] = bytes(self.inodes[inode].durable if content is None else content)
        return Image(files, tuple(self.directories))

    def power_loss(self, loss: Loss, rng: Random) -> Image:
        """One thing that a power loss now may leave."""
        pending = self.pending()
        if loss is Loss.ALL:
            return self.after(())
        if loss is Loss.NOTHING:
            return self.after(pending)
        if loss is Loss.SUFFIX:
            cut = rng.randint(0, len(pending))
            survivors = pending[:cut]
            if cut < len(pending) and pending[cut].data is not None:
                torn = pending[cut]
                survivors.append(torn.part(0, torn.offset + rng.randint(0, len(torn.data or b""))))
            return self.after(survivors)
        survivors = []
        for change in pending:
            for piece in change.sectors() if change.data is not None else (change,):
                if rng.random() < 0.5:
                    survivors.append(piece)
        return self.after(survivors)

    def power_losses(self) -> Iterator[Image]:
        """Everything worth trying that a power loss now may leave, each once.

        Every suffix of the changes in flight lost, with the write at the cut torn at every sector border and at a few
        bytes; every sector of a write missing alone, and present alone; the changes of one file or directory lost while
        all others survive, and the other way round.
        """
        seen: set[tuple[tuple[str, bytes], ...]] = set()
        for survivors in self._survivors(self.pending()):
            image = self.after(survivors)
            key = tuple(image.files.items())
            if key not in seen:
                seen.add(key)
                yield image

    @staticmethod
    def _survivors(pending: list[Change]) -> Iterator[list[Change]]:
        for cut, change in enumerate(pending):
            yield pending[:cut]
            if change.data is None:
                continue
            end = change.offset + len(change.data)
            cuts = {change.offset + byte for byte in (1, 7, 8, 15, 20, 24, 25)} | {end - 1, end - 8, end - 9}
            cuts |= set(range((change.offset // SECTOR_BYTES + 1) * SECTOR_BYTES, end, SECTOR_BYTES))
            for at in sorted(cuts):
                if change.offset < at < end:
                    yield [*pending[:cut], change.part(0, at)]
            sectors = change.sectors()
            for index, sector in enumerate(sectors):
                yield [*pending[:cut], sector]
                yield [*pending[:cut], *sectors[:index], *sectors[index + 1 :]]
        yield list(pending)
        for target in dict.fromkeys(change.target for change in pending):
            yield [change for change in pending if change.target == target]
            yield [change for change in pending if change.target != target]

    def _image(self, content: object, entries: object) -> Image:
        assert callable(content)
        assert callable(entries)
        files = {
            f"{path}/{name}": content(self.inodes[inode])
            for path, directory in self.directories.items()
            for name, inode in sorted(entries(directory).items())
        }
        return Image(files, tuple(self.directories))


def _link(entries: dict[str, int], changes: tuple[tuple[str, int | None], ...]) -> None:
    for name, inode in changes:
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


def crash_points(journal: Sequence[Operation], start: Image | None = None) -> Iterator[tuple[list[object], Image]]:
    """Every crash point of a recorded run with everything a power loss there may leave.

    Yields:
        The marks set before the crash, and an image.
    """
    disk = Disk(start)
    marks: list[object] = []
    previous: tuple[int, Image] | None = None
    for operation in [*journal, ("mark", None)]:
        for image in disk.power_losses():
            if previous is None or previous != (len(marks), image):
                yield list(marks), image
                previous = (len(marks), image)
        if operation[0] == "mark":
            marks.append(operation[1])
        disk.apply(operation)


# -- faults -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fault:
    """Something that goes wrong at the n-th operation from its injection on."""

    nth: int
    """1 is the next operation."""
    error: int = errno.EIO
    """What ``OSError`` is raised; ENOSPC only meets operations that need space."""
    sticky: bool = False
    """From then on, instead of once."""
    short: bool = False
    """The n-th operation, if a write, takes half of its bytes and succeeds; sticky: later writes raise the error."""
    outcome: Literal["lost", "cached", "durable"] = "cached"
    """What becomes of a durable write whose sync fails: nowhere, visible until the power goes, or on disk after all."""
    hits: int = 0
    """How often it struck."""


_SPACE = frozenset({"create", "mkdir", "rename", "pwritev", "preallocate"})


class SimFile:
    """An open file of a :class:`SimFileSystem`."""

    __slots__ = ("_fs", "_generation", "_inode", "_path", "_write")

    def __init__(self, fs: SimFileSystem, path: str, inode: int, *, write: bool) -> None:
        self._fs = fs
        self._path = path
        self._inode = inode
        self._write = write
        self._generation = fs.generation

    def _file(self, *, write: bool = False) -> _Inode:
        if self._generation != self._fs.generation or (write and not self._write):
            raise OSError(errno.EBADF, "Bad file descriptor", self._path)
        return self._fs.disk.inodes[self._inode]

    def pread(self, size: int, offset: int) -> bytes:
        self._fs.step("pread", self._path)
        return bytes(self._file().content[offset : offset + size])

    def pwritev(self, buffers: Sequence[bytes | memoryview], offset: int, *, durable: bool = False) -> int:
        fs = self._fs
        self._file(write=True)
        data = b"".join(buffers)
        if fs.step("pwritev", self._path):
            data = data[: len(data) // 2]
        end = offset + len(data)
        fs.apply(("write", self._inode, offset, data))
        if durable:
            try:
                fs.step("dsync", self._path)
            except OSError:
                outcome = fs.last_outcome
                if outcome == "durable":
                    fs.apply(("sync_range", self._inode, offset, end))
                else:
                    fs.apply(("lose", self._inode))
                    if outcome == "lost":  # the pages were thrown away: what lay there before is seen again
                        file = self._file()
                        was = bytes(file.durable[offset:end]).ljust(len(data), b"\0")
                        fs.apply(("write", self._inode, offset, was))
                raise
            fs.apply(("sync_range", self._inode, offset, end))
        return len(data)

    def fdatasync(self) -> None:
        self._file(write=True)
        try:
            self._fs.step("fdatasync", self._path)
        except OSError:
            if self._fs.last_outcome == "durable":
                self._fs.apply(("sync", self._inode))
            else:
                self._fs.apply(("lose", self._inode))
            raise
        self._fs.apply(("sync", self._inode))

    def preallocate(self, size: int) -> None:
        file = self._file(write=True)
        self._fs.step("preallocate", self._path)
        if size > len(file.content):
            self._fs.apply(("resize", self._inode, size))

    def truncate(self, size: int) -> None:
        self._file(write=True)
        self._fs.step("truncate", self._path)
        self._fs.apply(("resize", self._inode, size))

    def size(self) -> int:
        self._fs.step("size", self._path)
        return len(self._file().content)

    def close(self) -> None:
        pass


class SimLock:
    """A held lock of a :class:`SimFileSystem`."""

    def __init__(self, fs: SimFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        self._generation = fs.generation

    def release(self) -> None:
        if self._generation == self._fs.generation:
            self._fs.locks.discard(self._path)


class SimFileSystem:
    """A ``FileSystem`` over a :class:`Disk`.

    Args:
        image: what lies on the disk; the directory ``/data`` is always there.
        record: keep a journal of all operations.
    """

    def __init__(self, image: Image | None = None, *, record: bool = False) -> None:
        self.disk = Disk(image)
        self.disk.directories.setdefault("/data", _Directory())
        self.journal: list[Operation] | None = [("mkdir", "/data")] if record and image is None else None
        if record and image is not None:
            self.journal = []
        self.operations = 0
        """Operations so far, reads included: what faults and crashes count."""
        self.generation = 0
        self.locks: set[str] = set()
        self.faults: list[tuple[int, Fault]] = []
        self.last_outcome = "cached"
        self._crash_at: int | None = None

    # -- what tests do to it ------------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> Fault:
        """Lets an operation from now on go wrong; returns the fault, whose ``hits`` tell whether it struck."""
        self.faults.append((self.operations + fault.nth, fault))
        return fault

    def heal(self) -> None:
        """No more faults: space was freed, the disk was exchanged."""
        self.faults.clear()

    def crash_at(self, nth: int | None) -> None:
        """The power goes before the n-th operation from now on has an effect (1 is the next); None disarms."""
        self._crash_at = None if nth is None else self.operations + nth

    def restart(self) -> None:
        """The process ends: handles and locks are gone, what was written is still seen, synced or not."""
        self.generation += 1
        self.locks.clear()
        self._crash_at = None

    def power_loss(self, loss: Loss, rng: Random) -> None:
        """The power goes and comes back."""
        self.restart()
        self.disk = Disk(self.disk.power_loss(loss, rng))

    def mark(self, value: object) -> None:
        """Puts something into the journal, an acknowledgement for instance."""
        self.apply(("mark", value))

    def flip(self, path: str, byte: int, bit: int) -> None:
        """Turns one bit over, on disk and in every cache."""
        file = self.disk.inodes[self.disk.find(path)]
        for content in (file.content, file.durable):
            content[byte] ^= 1 << bit

    def image(self) -> Image:
        """What programs see."""
        return self.disk.seen()

    # -- machinery ----------------------------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> None:
        """Carries an operation out and keeps it."""
        self.disk.apply(operation)
        if self.journal is not None:
            self.journal.append(operation)

    def step(self, name: str, path: str) -> bool:
        """Counts an operation and lets it fail. Returns whether a write is to be short."""
        self.operations += 1
        if self._crash_at is not None and self.operations >= self._crash_at:
            raise PowerLossError(f"{name} {path}")
        if not self.faults:
            return False
        for at, fault in self.faults:
            if self.operations < at or (fault.hits and not fault.sticky):
                continue
            if fault.error == errno.ENOSPC and name not in _SPACE:
                continue
            if self.operations > at and not fault.sticky and fault.error != errno.ENOSPC:
                continue
            if fault.short:
                if name != "pwritev":
                    continue
                fault.hits += 1
                if fault.hits == 1:
                    return True
            else:
                fault.hits += 1
            self.last_outcome = fault.outcome
            raise OSError(fault.error, os.strerror(fault.error), path)
        return False

    # -- the seam -----------------------------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False, write: bool = False) -> SimFile:
        self.step("create" if create else "open", path)
        directory, name = os.path.split(path)
        if create:
            if name in self.disk.directory(directory).entries:
                raise FileExistsError(errno.EEXIST, "File exists", path)
            self.apply(("create", path, self.disk.allocate()))
        return SimFile(self, path, self.disk.find(path), write=write or create)

    def mkdir(self, path: str) -> None:
        self.step("mkdir", path)
        parts = path.rstrip("/").split("/")
        for count in range(2, len(parts) + 1):
            if "/".join(parts[:count]) not in self.disk.directories:
                self.apply(("mkdir", "/".join(parts[:count])))

    def listdir(self, path: str) -> list[str]:
        self.step("listdir", path)
        names = set(self.disk.directory(path).entries)
        prefix = f"{path}/"
        for directory in self.disk.directories:
            if directory.startswith(prefix) and "/" not in directory[len(prefix) :]:
                names.add(directory[len(prefix) :])
        return sorted(names)

    def is_dir(self, path: str) -> bool:
        return path in self.disk.directories

    def rename(self, source: str, target: str) -> None:
        self.step("rename", source)
        self.apply(("rename", source, target))

    def unlink(self, path: str) -> None:
        self.step("unlink", path)
        self.apply(("unlink", path))

    def fsync_dir(self, path: str) -> None:
        self.step("fsync_dir", path)
        self.apply(("sync_dir", path))

    def lock(self, path: str) -> SimLock:
        self.step("lock", path)
        if path in self.locks:
            raise DataDirError(f"{path}: the directory is in use by another process")
        self.locks.add(path)
        return SimLock(self, path)


def _conforms(fs: SimFileSystem) -> FileSystem:
    """The type checker's proof that this is the seam."""
    return fs
