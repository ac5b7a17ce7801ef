"""The error tree of the recipes: everything they raise on purpose is a :class:`RecipeError`.

Two branches. :class:`ClientError` is what a call to the servers ended with; it keeps the gRPC code and the server's own
text. The others are facts about a recipe: a session that is gone, a lock that is not held, a configuration that was
refused. A message says what happened and what the caller can do.

Mistakes in the program (a wrong argument, an object used twice) are ``ValueError``, ``TypeError`` and ``RuntimeError``
as everywhere in Python, not part of this tree.
"""

from __future__ import annotations

from kvserver.errors import Code

COMPACTED_TEXT = "etcdserver: mvcc: required revision has been compacted"
"""The server's text for a read or a watch below the compacted revision."""

LEASE_NOT_FOUND_TEXT = "etcdserver: requested lease not found"
"""The server's text for a lease that expired, was revoked or never existed."""


class RecipeError(Exception):
    """Base of everything that the recipes raise on purpose."""


class ClientError(RecipeError):
    """A call to the servers failed.

    Attributes:
        code: The gRPC status code, a :class:`kvserver.errors.Code` where the number is a known one.
        message: The server's text, or the client's when no server answered.
    """

    def __init__(self, code: int, message: str) -> None:
        try:
            self.code: int = Code(code)
        except ValueError:
            self.code = code
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        name = self.code.name if isinstance(self.code, Code) else str(self.code)
        return f"{self.message} [{name}]"

    def __reduce__(self) -> tuple[type[ClientError], tuple[int, str]]:
        return type(self), (self.code, self.message)


class UnavailableError(ClientError):
    """No server could be reached, or the one reached cannot serve now; the request surely had no effect.

    Trying again later is safe.
    """

    def __init__(self, message: str, code: int = Code.UNAVAILABLE) -> None:
        super().__init__(code, message)

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, int]]:  # type: ignore[override]
        return type(self), (self.message, self.code)


class DeadlineExceededError(ClientError, TimeoutError):
    """The deadline of a call passed; the request read only, or surely had no effect."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.DEADLINE_EXCEEDED, message)

    def __reduce__(self) -> tuple[type[ClientError], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class OutcomeUnknownError(ClientError):
    """A write was sent, and its answer was lost: it may have happened, may happen yet, or not at all.

    The client never repeats such a write by itself. Read the key to find out, or write in a way that recognises its own
    earlier attempt (compare a create or mod revision in a txn).
    """


class CompactedError(ClientError):
    """The revision asked for has been compacted away.

    A watch that raises this missed events it can never get: read the current state and watch from there.

    Attributes:
        compact_revision: The oldest revision that can still be read, 0 when the server did not say.
    """

    def __init__(self, message: str = COMPACTED_TEXT, *, compact_revision: int = 0) -> None:
        self.compact_revision = compact_revision
        super().__init__(Code.OUT_OF_RANGE, message)

    def __reduce__(self) -> tuple[type[ClientError], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class LeaseNotFoundError(ClientError):
    """The lease expired, was revoked, or never existed."""

    def __init__(self, message: str = LEASE_NOT_FOUND_TEXT) -> None:
        super().__init__(Code.NOT_FOUND, message)

    def __reduce__(self) -> tuple[type[ClientError], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class SessionLostError(RecipeError):
    """The session is gone, and with it every key it kept: a lock is no longer held, a leader no longer leads."""


class NotHeldError(RecipeError):
    """Something was to be released or used that is not held (any more)."""


class AcquireTimeoutError(RecipeError, TimeoutError):
    """The time allowed for acquiring or campaigning passed; nothing is left behind."""


class NotLeaderError(RecipeError):
    """An operation for leaders only, by a candidate that is not, or no longer, the leader."""


class NoInstanceError(RecipeError):
    """A discovery view has no instance to offer."""


class ConfigInvalidError(RecipeError):
    """A configuration does not parse or does not fit its model; the last good one stays in force.

    Attributes:
        reason: What is wrong, with the field's place where it is known.
        mod_revision: The revision that brought the refused configuration, 0 when it was never stored.
    """

    def __init__(self, message: str, *, reason: str = "", mod_revision: int = 0) -> None:
        self.reason = reason or message
        self.mod_revision = mod_revision
        super().__init__(message)


class ConfigConflictError(RecipeError):
    """Somebody else changed the configuration since it was read; read it again and redo the change."""


def client_error(code: int, message: str) -> ClientError:
    """Answer the most specific error for a status that surely left nothing behind."""
    if code == Code.UNAVAILABLE:
        return UnavailableError(message)
    if code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceededError(message)
    if code == Code.OUT_OF_RANGE and message == COMPACTED_TEXT:
        return CompactedError(message)
    if code == Code.NOT_FOUND and message == LEASE_NOT_FOUND_TEXT:
        return LeaseNotFoundError(message)
    return ClientError(code, message)
