"""What can go wrong on disk, told apart by what has to happen next.

``WalError`` and ``SnapshotError``: the files are not what they should be (foreign, of another format, missing).
``CorruptionError``: bytes that were durable have changed; the node must not start from them. ``StorageFailedError``:
the disk refused a write or a sync; nothing may be acknowledged from then on, the process has to end. All of them are
``StartupError``: their text names the file and says what to do.
"""

from __future__ import annotations

from kvserver.errors import DataDirError

REFUSED_HINT = (
    "nothing was changed on disk. Restore this member from a snapshot or backup; in a cluster, remove it, "
    "delete its data directory and add it anew"
)
"""What an operator does about a damaged log."""


class WalError(DataDirError):
    """The log cannot be used as it lies there: missing, foreign, of another format, or asked for what it lacks."""


class CorruptionError(DataDirError):
    """Durable bytes of a log or a snapshot have changed, or are missing in the middle.

    Attributes:
        path: the file.
        offset: byte offset in it.
        expected: what should have been there.
    """

    def __init__(self, path: str, offset: int, expected: str, found: str, hint: str = REFUSED_HINT) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: expected {expected}, found {found}; {hint}")
        self.path = path
        self.offset = offset
        self.expected = expected
        self.found = found


class StorageFailedError(DataDirError):
    """The disk refused. Final for the log or the snapshot that raised it.

    What the kernel did with the pages of a failed sync is unknown, so a retry would prove nothing.
    """


class SnapshotError(DataDirError):
    """A snapshot cannot be used as it lies there: missing, or of another format."""
