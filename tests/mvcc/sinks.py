"""A watch sink that keeps what it gets, and can be full."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvserver.proto.kv_pb2 import Event
from kvserver.proto.rpc_pb2 import WatchResponse


@dataclass
class Sink:
    """Records deliveries, by watcher."""

    full: bool = False
    refused: int = 0
    deliveries: dict[int, list[tuple[int, list[Event]]]] = field(default_factory=dict)
    cancellations: list[tuple[int, int, str]] = field(default_factory=list)
    reports: list[tuple[int, int]] = field(default_factory=list)

    def deliver(self, watch_id: int, revision: int, events: list[bytes]) -> bool:
        if self.full:
            self.refused += 1
            return False
        decoded = list(WatchResponse.FromString(b"".join(events)).events)
        assert decoded
        assert revision >= decoded[-1].kv.mod_revision
        self.deliveries.setdefault(watch_id, []).append((revision, decoded))
        return True

    def cancelled(self, watch_id: int, compact_revision: int, reason: str) -> None:
        self.cancellations.append((watch_id, compact_revision, reason))

    def progress(self, watch_id: int, revision: int) -> None:
        self.reports.append((watch_id, revision))

    def events(self, watch_id: int) -> list[Event]:
        """Answer all events of a watcher."""
        return [event for _, events in self.deliveries.get(watch_id, []) for event in events]

    def revisions(self, watch_id: int) -> list[int]:
        """Answer the revisions of a watcher's events."""
        return [event.kv.mod_revision for event in self.events(watch_id)]
