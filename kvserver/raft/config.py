"""Settings of one consensus core, and the two things it may not make itself: random numbers and log lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvserver import limits


class Rng(Protocol):
    """A source of random numbers; ``random.Random`` is one."""

    def randrange(self, start: int, stop: int, /) -> int:
        """Answer an int in [start, stop)."""
        ...


class Logger(Protocol):
    """Where the core reports what an operator may want to know; ``logging.Logger`` is one."""

    def debug(self, message: str, /, *args: object) -> None:
        """Report a detail."""
        ...

    def info(self, message: str, /, *args: object) -> None:
        """Report a change of role, term or configuration."""
        ...

    def warning(self, message: str, /, *args: object) -> None:
        """Report something unexpected that was dealt with."""
        ...


class NullLogger:
    """Reports nothing."""

    def debug(self, message: str, /, *args: object) -> None:
        """Do nothing."""

    def info(self, message: str, /, *args: object) -> None:
        """Do nothing."""

    def warning(self, message: str, /, *args: object) -> None:
        """Do nothing."""


NULL_LOGGER = NullLogger()


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one core. Times are in ticks.

    Attributes:
        id: this member; never 0.
        rng: source of the randomized election timeouts.
        election_ticks: a follower that hears nothing for this long (up to twice as long, at random) campaigns.
        heartbeat_ticks: how often a leader makes itself heard.
        pre_vote: ask whether an election could be won before raising the term (thesis 9.6).
        check_quorum: a leader that hears no quorum for ``election_ticks`` steps down, and nobody votes against a leader
            heard within that time.
        forward_proposals: followers send proposals on to the leader (their outcome and index stay unknown to them);
            otherwise they refuse with :class:`~kvserver.raft.errors.NotLeaderError`.
        logger: where role changes and oddities are reported.
        message_bytes_max: entries of one append, by their data; a larger single entry travels alone.
        inflight_messages_max: appends under way to one follower.
        inflight_bytes_max: their bytes.
        committed_entries_max: entries of ``Ready.committed_entries``.
        committed_bytes_max: their bytes; one entry at least.
        uncommitted_bytes_max: proposals beyond this many uncommitted bytes are refused.
        pending_reads_max: read requests that wait for a confirmation; more are dropped and have to be asked again.
    """

    id: int
    rng: Rng
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    check_quorum: bool = True
    forward_proposals: bool = False
    logger: Logger = NULL_LOGGER
    message_bytes_max: int = limits.RAFT_MESSAGE_BYTES_MAX
    inflight_messages_max: int = limits.RAFT_INFLIGHT_MESSAGES_MAX
    inflight_bytes_max: int = limits.RAFT_INFLIGHT_BYTES_MAX
    committed_entries_max: int = limits.RAFT_COMMITTED_ENTRIES_MAX
    committed_bytes_max: int = limits.RAFT_COMMITTED_BYTES_MAX
    uncommitted_bytes_max: int = limits.RAFT_UNCOMMITTED_BYTES_MAX
    pending_reads_max: int = limits.RAFT_PENDING_READS_MAX

    def __post_init__(self) -> None:
        if self.id <= 0:
            raise ValueError("id must be positive; 0 stands for nobody")
        if self.heartbeat_ticks < 1:
            raise ValueError("heartbeat_ticks must be at least 1")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must be greater than heartbeat_ticks")
        for name in ("message_bytes_max", "committed_entries_max", "committed_bytes_max", "pending_reads_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.inflight_messages_max < 1 or self.inflight_bytes_max < self.message_bytes_max:
            raise ValueError("the inflight window must have room for one message")
        if self.uncommitted_bytes_max < 1:
            raise ValueError("uncommitted_bytes_max must be at least 1")
