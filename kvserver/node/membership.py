"""Who belongs to the cluster: the members, their URLs, and the stable hashes that name them.

State of the replicated machine: changed only by applying entries, so every member holds the same.
Ids are computed as etcd computes them (first eight bytes of SHA-1 over the sorted peer URLs and the cluster token; the
cluster's over the sorted member ids), so that the same flags give the same ids on both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kvserver.proto.rpc_pb2 import Member as MemberMessage


def member_id_of(peer_urls: Iterable[str], token: str) -> int:
    """Compute a bootstrapping member's id from its peer URLs and the cluster token."""
    text = "".join(sorted(peer_urls)) + token
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8], "big")


def cluster_id_of(member_ids: Iterable[int]) -> int:
    """Compute the cluster's id from the ids of its first members."""
    data = b"".join(member_id.to_bytes(8, "big") for member_id in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Member:
    """One member; ``name`` and ``client_urls`` are empty until it has started and published itself."""

    member_id: int
    peer_urls: tuple[str, ...]
    name: str = ""
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    def message(self) -> MemberMessage:
        """Answer the member as the protocol shows it."""
        return MemberMessage(
            ID=self.member_id,
            name=self.name,
            peerURLs=self.peer_urls,
            clientURLs=self.client_urls,
            isLearner=self.is_learner,
        )

    @classmethod
    def from_message(cls, message: MemberMessage) -> Member:
        """Build a member from the protocol's form."""
        return cls(message.ID, tuple(message.peerURLs), message.name, tuple(message.clientURLs), message.isLearner)


class Membership:
    """The members by id, and the version the cluster agreed on."""

    def __init__(self, members: Mapping[int, Member] | None = None, cluster_version: str = "") -> None:
        self._members: dict[int, Member] = dict(members or {})
        self.cluster_version = cluster_version

    def members(self) -> list[Member]:
        """Answer all members in order of their ids."""
        return [self._members[member_id] for member_id in sorted(self._members)]

    def get(self, member_id: int) -> Member | None:
        """Answer the member of that id, or None."""
        return self._members.get(member_id)

    def add(self, member: Member) -> None:
        """Take a member in, keeping what it may have published before."""
        self._members[member.member_id] = member

    def publish(self, member_id: int, name: str, client_urls: Iterable[str]) -> None:
        """Note the name and client URLs of a started member; an unknown id changes nothing, as it was removed."""
        member = self._members.get(member_id)
        if member is not None:
            self._members[member_id] = replace(member, name=name, client_urls=tuple(client_urls))
