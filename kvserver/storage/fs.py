"""The file-system seam: every file access of this package goes through :class:`FileSystem`.

Production uses :class:`OsFileSystem`; tests and the simulator bring their own, which loses, tears, flips and fails at
any call. The seam therefore has few calls, each with one stated durability effect:

- ``File.pwritev(durable=True)`` returns only when these bytes survive a power loss; other writes are not covered.
- ``File.fdatasync`` covers all earlier writes, truncations and preallocations of that file.
- ``FileSystem.fsync_dir`` covers creations, renames and removals in that directory; nothing else does.

Errors are ``OSError`` as the system gives them. Text for operators, retries and policy do not belong here; the one
exception is the lock, whose failure is an answer rather than an error of the device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from kvserver.errors import DataDirError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


class File(Protocol):
    """An open file, addressed by offset: no cursor, so nothing to lose track of after an error."""

    def pread(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset``; fewer only at the end of the file."""

    def pwritev(self, buffers: Sequence[bytes | memoryview], offset: int, *, durable: bool = False) -> int:
        """Writes the buffers one behind the other; returns how many bytes were taken (may be fewer than given).

        Args:
            buffers: what to write.
            offset: where, in bytes from the start.
            durable: return only when the bytes taken would survive a power loss.
        """

    def fdatasync(self) -> None:
        """Makes all earlier changes of this file durable: data and size, not the directory entry."""

    def preallocate(self, size: int) -> None:
        """Reserves blocks up to ``size`` bytes, reading as zeros; never shortens. ENOSPC comes here, not later."""

    def truncate(self, size: int) -> None:
        """Cuts the file to ``size`` bytes."""

    def size(self) -> int:
        """Length in bytes."""

    def close(self) -> None:
        """Closes; idempotent."""


class Lock(Protocol):
    """A held lock."""

    def release(self) -> None:
        """Gives it up; idempotent."""


class FileSystem(Protocol):
    """What storage needs of a file system. Paths are absolute or relative strings, ``/``-joined by :func:`join`."""

    def open(self, path: str, *, create: bool = False, write: bool = False) -> File:
        """Opens a file.

        Args:
            path: the file.
            create: make it; an existing one is an error (``FileExistsError``). Implies ``write``.
            write: open for writing too.
        """

    def mkdir(self, path: str) -> None:
        """Makes a directory and its parents (mode 0700) and makes the new entries durable; an existing one is fine."""

    def listdir(self, path: str) -> list[str]:
        """Names in the directory, sorted. ``FileNotFoundError`` if there is none."""

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""

    def rename(self, source: str, target: str) -> None:
        """Renames within one directory, replacing the target atomically; durable after :meth:`fsync_dir`."""

    def unlink(self, path: str) -> None:
        """Removes a file; durable after :meth:`fsync_dir`."""

    def fsync_dir(self, path: str) -> None:
        """Makes earlier creations, renames and removals in this directory durable."""

    def lock(self, path: str) -> Lock:
        """Takes the exclusive lock behind this path or raises ``DataDirError`` at once if somebody holds it."""


def join(directory: str, name: str) -> str:
    """The path of ``name`` in ``directory``.

    >>> join("data/wal", "1.wal")
    'data/wal/1.wal'
    """
    return f"{directory}/{name}"


def write_all(file: File, data: bytes, offset: int) -> None:
    """Writes all of ``data`` (not durably): a short write is continued, and an error of the rest is raised."""
    written = file.pwritev((data,), offset)
    while written < len(data):
        taken = file.pwritev((memoryview(data)[written:],), offset + written)
        if taken <= 0:
            raise OSError(errno.EIO, "write returned 0")
        written += taken


class _WriteFlags:
    """Whether this system has a durable write in one call; found out at the first one."""

    dsync: int = getattr(os, "RWF_DSYNC", 0)


_write_flags = _WriteFlags()


class OsFile:
    """A file of the operating system."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]  # a single read stops at 2 GiB or at a signal
        have = len(data)
        while have < size and (data := os.pread(self._fd, size - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def pwritev(self, buffers: Sequence[bytes | memoryview], offset: int, *, durable: bool = False) -> int:
        # Hot: one call a WAL batch. RWF_DSYNC makes it one system call instead of write + fdatasync: the disk thread
        # gives up and has to win back the interpreter lock once, not twice.
        if durable and _write_flags.dsync:
            try:
                return os.pwritev(self._fd, buffers, offset, _write_flags.dsync)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                _write_flags.dsync = 0  # nothing was written; this system does not know the flag
        taken = os.pwritev(self._fd, buffers, offset)
        if durable:
            self.fdatasync()
        return taken

    def fdatasync(self) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)  # fsync there leaves the data in the drive's cache
        else:
            os.fdatasync(self._fd)

    def preallocate(self, size: int) -> None:
        have = self.size()
        if have >= size:
            return
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._fd, have, size - have)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                os.ftruncate(self._fd, size)  # file systems without it: a sparse file still reads as zeros
        else:
            os.ftruncate(self._fd, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class OsLock:
    """A lock held through ``flock`` on an open file: the system gives it up when the process ends, however it ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class OsFileSystem:
    """The operating system's file system. Directories are made 0700, files 0600."""

    def open(self, path: str, *, create: bool = False, write: bool = False) -> OsFile:
        flags = os.O_RDWR if create or write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return OsFile(os.open(path, flags, FILE_MODE))

    def mkdir(self, path: str) -> None:
        path = path.rstrip("/") or "/"
        missing = []
        while path and not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            os.mkdir(directory, DIRECTORY_MODE)
            self.fsync_dir(os.path.dirname(directory) or ".")

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def is_dir(self, path: str) -> bool:
        return os.path.isdir(path)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> OsLock:
        import fcntl

        fd = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = ""
            with contextlib.suppress(OSError):
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise DataDirError(
                f"{path}: the directory is in use by {who}; stop that node or choose another --data-dir or --wal-dir"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return OsLock(fd)
