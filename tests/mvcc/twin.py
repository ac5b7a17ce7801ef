"""A deliberately dumb twin of the store: the list of all versions, searched from end to end."""

from __future__ import annotations

from dataclasses import dataclass

from kvserver.proto.kv_pb2 import Event, KeyValue


@dataclass
class Version:
    """One change of one key."""

    main: int
    sub: int
    key: bytes
    kv: KeyValue | None  # None: deleted

    def event(self, previous: KeyValue | None) -> Event:
        """Compose the change as a watcher sees it."""
        if self.kv is None:
            kv = KeyValue(key=self.key, mod_revision=self.main)
            return Event(type=Event.DELETE, kv=kv, prev_kv=previous)
        return Event(type=Event.PUT, kv=self.kv, prev_kv=previous if self.kv.version > 1 else None)


class Twin:
    """All versions of all keys, never forgotten."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self.revision = 1
        self.compacted = -1
        self._sub = 0

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """Answer a key as of a revision."""
        found = None
        for version in self.versions:
            if version.key == key and version.main <= revision:
                found = version.kv
        return found

    def range(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        """Answer the keys of a range as of a revision, in order."""
        keys = sorted({version.key for version in self.versions if holds(key, end, version.key)})
        return [kv for name in keys if (kv := self.at(name, revision)) is not None]

    def begin(self) -> None:
        """Start a txn."""
        self._sub = 0

    def end(self) -> None:
        """End a txn."""
        if self._sub:
            self.revision += 1

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key within a txn."""
        main = self.revision + 1
        old = self.at(key, main)
        kv = KeyValue(
            key=key,
            value=value,
            lease=lease,
            create_revision=main if old is None else old.create_revision,
            mod_revision=main,
            version=1 if old is None else old.version + 1,
        )
        self.versions.append(Version(main, self._sub, key, kv))
        self._sub += 1

    def delete(self, key: bytes, end: bytes) -> list[KeyValue]:
        """Delete a range within a txn."""
        main = self.revision + 1
        gone = self.range(key, end, main)
        for kv in gone:
            self.versions.append(Version(main, self._sub, kv.key, None))
            self._sub += 1
        return gone

    def events(self, key: bytes, end: bytes, first: int, last: int, prev_kv: bool) -> list[Event]:
        """Answer what a watcher of a range has to get of revisions first to last."""
        return [
            version.event(self.at(version.key, version.main - 1) if prev_kv else None)
            for version in self.versions
            if first <= version.main <= last and holds(key, end, version.key)
        ]


def holds(key: bytes, end: bytes, name: bytes) -> bool:
    """Answer whether a range of the protocol holds a key."""
    if not end:
        return name == key
    return name >= key and (end == b"\0" or name < end)
