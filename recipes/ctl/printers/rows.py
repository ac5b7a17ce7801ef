"""The columns that the simple and the table format share."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import rpc_pb2
from recipes.ctl.gotext import format_duration, human_bytes
from recipes.ctl.printers.base import Hashes, Health, Statuses

Rows = list[list[str]]

MEMBER_HEADER = ["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"]
HEALTH_HEADER = ["endpoint", "health", "took", "error"]
STATUS_HEADER = [
    "endpoint",
    "ID",
    "version",
    "db size",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
]
HASH_HEADER = ["endpoint", "hash"]


def truth(value: bool) -> str:
    """Answer a truth value as Go prints it."""
    return "true" if value else "false"


def member_rows(response: rpc_pb2.MemberListResponse) -> Rows:
    """Answer a row a member."""
    return [
        [
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            member.name,
            ",".join(member.peerURLs),
            ",".join(member.clientURLs),
            truth(member.isLearner),
        ]
        for member in response.members
    ]


def health_rows(healths: Sequence[Health]) -> Rows:
    """Answer a row an endpoint."""
    return [[h.endpoint, truth(h.healthy), format_duration(h.took_nanoseconds), h.error] for h in healths]


def status_rows(statuses: Statuses) -> Rows:
    """Answer a row an endpoint."""
    return [
        [
            endpoint,
            f"{status.header.member_id:x}",
            status.version,
            human_bytes(status.dbSize),
            truth(status.leader == status.header.member_id),
            truth(status.isLearner),
            str(status.raftTerm),
            str(status.raftIndex),
            str(status.raftAppliedIndex),
            ", ".join(status.errors),
        ]
        for endpoint, status in statuses
    ]


def hash_rows(hashes: Hashes) -> Rows:
    """Answer a row an endpoint."""
    return [[endpoint, str(answer.hash)] for endpoint, answer in hashes]
