"""Finding watchers by key: against a look at every one of them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from kvserver.mvcc import watchers
from kvserver.mvcc.watchers import WatcherIndex, is_prefix


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchers, "BLOCK_RANGES", 4)
        patch.setattr(watchers, "REMEMBERED_KEYS", 8)
        yield


def key(rng: random.Random) -> bytes:
    return bytes(rng.randrange(97, 101) for _ in range(rng.randrange(1, 4)))


def watcher(rng: random.Random) -> SimpleNamespace:
    start = key(rng)
    kind = rng.randrange(4)
    if kind == 0:
        end: bytes | None = b""
    elif kind == 1:
        end = None
    elif kind == 2:
        end = start[:-1] + bytes((start[-1] + 1,))
    else:
        end = start + key(rng)
    return SimpleNamespace(key=start, end=end, variant=rng.randrange(2), __hash__=None)


class Named(SimpleNamespace):
    """A watcher as far as the index looks at it."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def holds(watcher: Named, name: bytes) -> bool:
    if watcher.end == b"":
        return name == watcher.key
    return name >= watcher.key and (watcher.end is None or name < watcher.end)


@pytest.mark.parametrize("seed", range(6))
def test_random_watchers(seed: int) -> None:
    rng = random.Random(seed)
    index, present = WatcherIndex(), []
    for _ in range(400):
        if present and rng.random() < 0.4:
            gone = present.pop(rng.randrange(len(present)))
            index.remove(gone)  # type: ignore[arg-type]
        else:
            new = Named(**vars(watcher(rng)))
            present.append(new)
            index.add(new)  # type: ignore[arg-type]
        name = key(rng)
        groups = index.find(name)
        found = [member for group in groups for members in group.watchers.values() for member in members]
        assert len(found) == len(set(map(id, found)))
        assert set(map(id, found)) == {id(each) for each in present if holds(each, name)}
        assert index.count == len(present)
    for each in present:
        index.remove(each)  # type: ignore[arg-type]
    assert index.find(b"a") == []
    assert len(index._ranges) == 0
    assert index._lengths == {}


@pytest.mark.parametrize(
    ("start", "end", "prefix"),
    [
        (b"a", b"b", True),
        (b"a/", b"a0", True),
        (b"a\xff", b"b", False),
        (b"a", b"c", False),
        (b"a", b"", False),
        (b"a", None, False),
        (b"ab", b"b", False),
        (b"x" * 65, b"x" * 64 + b"y", False),
    ],
)
def test_prefixes(start: bytes, end: bytes | None, prefix: bool) -> None:
    assert is_prefix(start, end) is prefix
