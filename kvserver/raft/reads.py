"""Read requests at the leader, confirmed in rounds (thesis 6.4).

A read that arrives at the leader may be answered from a state that includes everything committed by then, once the
leader knows that it still led after the read arrived. To know that, it numbers a round, sends the number with a
heartbeat, and waits for a quorum to send it back. Reads that arrive while a round is under way wait for the next one:
so there is one round for any number of reads, and no read is confirmed by an answer older than itself.
"""

from __future__ import annotations

from collections.abc import Mapping


class ReadRounds:
    """The leader's waiting and pending reads; (member that asked, its context)."""

    __slots__ = ("acks", "index", "pending", "round", "waiting")

    def __init__(self) -> None:
        self.round = 0
        """Number of the last round begun; never reused while this member leads."""
        self.waiting: list[tuple[int, bytes]] = []
        self.pending: list[tuple[int, bytes]] = []
        self.index = 0
        """The commit index when the round under way began."""
        self.acks: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.pending)

    @property
    def context(self) -> bytes:
        """What heartbeats carry: the number of the round under way, or nothing."""
        return self.round.to_bytes(8, "big") if self.pending else b""

    def begin(self, index: int, own_id: int) -> None:
        """Begin a round for all that wait."""
        self.round += 1
        self.index = index
        self.pending, self.waiting = self.waiting, []
        self.acks = {own_id: True}

    def acknowledge(self, from_id: int, context: bytes) -> Mapping[int, bool] | None:
        """Take a heartbeat's answer; answer who confirmed the round under way; None if it is another's."""
        if not self.pending or context != self.context:
            return None
        self.acks[from_id] = True
        return self.acks

    def finish(self) -> list[tuple[int, bytes]]:
        """End the round under way; answer its reads."""
        pending, self.pending = self.pending, []
        return pending

    def clear(self) -> None:
        """Forget all reads: whoever asked has to ask again."""
        self.waiting = []
        self.pending = []
