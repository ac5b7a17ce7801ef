"""Consensus: the Raft algorithm as a pure machine. :class:`RawNode` is its surface, :class:`Ready` its one output.

Nothing here knows of clocks, sockets, disks, threads or event loops; random numbers and the logger are arguments. What
comes out depends on what goes in alone, so a run can be repeated exactly.
"""

from __future__ import annotations

from kvserver.raft._invariant import InvariantError
from kvserver.raft.confchange import ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType
from kvserver.raft.config import Config, Logger, Rng
from kvserver.raft.errors import (
    ConfChangeError,
    ConfChangePendingError,
    NotLeaderError,
    ProposalDroppedError,
    RaftError,
    TransferringError,
    UncommittedLimitError,
)
from kvserver.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    InitialState,
    Message,
    MessageType,
    ReadState,
    Ready,
    Role,
    Snapshot,
    SoftState,
)
from kvserver.raft.rawnode import RawNode, Status
from kvserver.raft.tracker import ProgressState, ProgressStatus

__all__ = [
    "ConfChange",
    "ConfChangeError",
    "ConfChangePendingError",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfState",
    "Config",
    "Entry",
    "EntryType",
    "HardState",
    "InitialState",
    "InvariantError",
    "Logger",
    "Message",
    "MessageType",
    "NotLeaderError",
    "ProgressState",
    "ProgressStatus",
    "ProposalDroppedError",
    "RaftError",
    "RawNode",
    "ReadState",
    "Ready",
    "Rng",
    "Role",
    "Snapshot",
    "SoftState",
    "Status",
    "TransferringError",
    "UncommittedLimitError",
]
