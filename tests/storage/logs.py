"""Small logs for the tests of this package: tiny segments, and a run whose acknowledgements are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from kvserver.storage import FileSystem, Position, Wal, WalOptions

DIRECTORY = "/data/member/wal"
METADATA = b"cluster 1, member 2"
TINY = WalOptions(segment_bytes=2048, zero_ahead_bytes=512, frame_bytes_max=8192)

Item = tuple[int, bytes]


def write(wal: Wal, *records: Item) -> Position:
    """Writes one batch."""
    for record_type, payload in records:
        wal.append(record_type, payload)
    batch = wal.seal()
    assert batch is not None
    return wal.write(batch)


def read(fs: FileSystem, from_position: Position | None = None, options: WalOptions = TINY) -> list[Item]:
    """Opens a log, reads it and closes it."""
    wal = Wal.open(fs, DIRECTORY, options)
    try:
        return [(record.type, record.payload) for record in wal.replay(from_position)]
    finally:
        wal.close()


def create(fs: FileSystem, options: WalOptions = TINY) -> Wal:
    """Makes a log."""
    return Wal.create(fs, DIRECTORY, METADATA, options)


def sample_batches(seed: int, count: int) -> list[list[Item]]:
    """Batches of all the kinds that matter: one record or several, empty, raw, compressed, incompressible, of zeros."""
    rng = Random(seed)
    batches = []
    for number in range(count):
        batch: list[Item] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            size = rng.choice((0, 1, 7, 8, 17, 100, 300, 487, 511, 512, 700, 1300))
            filling = rng.choice(("text", "zeros", "random", "ones"))
            if filling == "text":
                payload = (b"record %d, " % number * (size // 8 + 1))[:size]
            elif filling == "random":
                payload = rng.randbytes(size)
            else:
                payload = (b"\0" if filling == "zeros" else b"\xff") * size
            batch.append((rng.choice((1, 2, 3, 255)), payload))
        batches.append(batch)
    return batches


def flat(batches: Iterable[Sequence[Item]]) -> list[Item]:
    """All records of these batches."""
    return [record for batch in batches for record in batch]
