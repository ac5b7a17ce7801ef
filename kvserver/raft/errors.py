"""What the consensus core raises.

:class:`ProposalDroppedError` and its children mean that nothing was appended: the caller may try again, here or at the
leader. :class:`ConfChangeError` means that the change itself makes no sense for the present configuration.
A broken invariant is no error of this tree; see ``_invariant``.
"""

from __future__ import annotations


class RaftError(Exception):
    """Base of the consensus core's errors."""


class ProposalDroppedError(RaftError):
    """The proposal was not appended and never will be."""


class NotLeaderError(ProposalDroppedError):
    """This member does not lead, and does not forward proposals.

    Attributes:
        leader_id: who leads, as far as this member knows; 0 when nobody is known to.
    """

    def __init__(self, leader_id: int) -> None:
        super().__init__(f"not the leader; the leader is {leader_id:x}" if leader_id else "there is no leader")
        self.leader_id = leader_id


class UncommittedLimitError(ProposalDroppedError):
    """Too many bytes are proposed and not yet committed."""


class TransferringError(ProposalDroppedError):
    """Leadership is being handed over; proposals resume with the next leader."""


class ConfChangePendingError(ProposalDroppedError):
    """An earlier membership change is not applied yet; one at a time."""


class ConfChangeError(RaftError):
    """The membership change is not possible from the present configuration."""
