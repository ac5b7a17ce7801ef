"""The error tree: every error of the protocol with its gRPC code and its text, and the HTTP status of each code.

A request fails with a :class:`KvError`. Protocol errors are its subclasses with the exact text of the etcd v3 protocol,
since clients compare texts. What an operator meets (a bad flag, a damaged file) are the ``StartupError`` family: their
message names the flag or the file and says what to do.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[int, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""HTTP status of each gRPC code, as the JSON gateway answers it."""


class KvError(Exception):
    """A request that failed: a gRPC code and a text for the caller.

    Subclasses fix both; an instance of the base class carries what it was given.
    """

    code: int = Code.UNKNOWN
    message: str = "etcdserver: unknown error"

    def __init__(self, message: str | None = None, code: int | None = None) -> None:
        if message is not None:
            self.message = message
        if code is not None:
            self.code = code
        super().__init__(self.message)


class ProtocolError(KvError):
    """Base of the errors that the protocol names: code and text are fixed by the class."""

    TABLE: ClassVar[list[type[ProtocolError]]] = []

    def __init_subclass__(cls) -> None:
        ProtocolError.TABLE.append(cls)


class EmptyKeyError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: key is not provided"


class KeyNotFoundError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: key not found"


class ValueProvidedError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: value is provided"


class LeaseProvidedError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: lease is provided"


class TooManyOperationsError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: too many operations in txn request"


class DuplicateKeyError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: duplicate key given in txn request"


class InvalidClientApiVersionError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: invalid client api version"


class InvalidSortOptionError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: invalid sort option"


class BadPeerUrlsError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: given member URLs are invalid"


class RequestTooLargeError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: request is too large"


class UserEmptyError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: user name is empty"


class RoleEmptyError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: role name is empty"


class AuthFailedError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: authentication failed, invalid user ID or password"


class PermissionNotGivenError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: permission not given"


class InvalidAuthManagementError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: invalid auth management"


class AuthOldRevisionError(ProtocolError):
    code = Code.INVALID_ARGUMENT
    message = "etcdserver: revision of auth store is old"


class CompactedError(ProtocolError):
    code = Code.OUT_OF_RANGE
    message = "etcdserver: mvcc: required revision has been compacted"


class FutureRevisionError(ProtocolError):
    code = Code.OUT_OF_RANGE
    message = "etcdserver: mvcc: required revision is a future revision"


class LeaseTtlTooLargeError(ProtocolError):
    code = Code.OUT_OF_RANGE
    message = "etcdserver: too large lease TTL"


class NoSpaceError(ProtocolError):
    code = Code.RESOURCE_EXHAUSTED
    message = "etcdserver: mvcc: database space exceeded"


class TooManyRequestsError(ProtocolError):
    code = Code.RESOURCE_EXHAUSTED
    message = "etcdserver: too many requests"


class LeaseNotFoundError(ProtocolError):
    code = Code.NOT_FOUND
    message = "etcdserver: requested lease not found"


class MemberNotFoundError(ProtocolError):
    code = Code.NOT_FOUND
    message = "etcdserver: member not found"


class LeaseExistsError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: lease already exists"


class MemberExistsError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: member ID already exist"


class PeerUrlExistsError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: Peer URLs already exists"


class MemberNotEnoughStartedError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: re-configuration failed due to not enough started members"


class MemberNotLearnerError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: can only promote a learner member"


class LearnerNotReadyError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: can only promote a learner member which is in sync with leader"


class TooManyLearnersError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: too many learner members in cluster"


class ClusterIdMismatchError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: cluster ID mismatch"


class RootUserNotExistError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: root user does not exist"


class RootRoleNotExistError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: root user does not have root role"


class UserExistsError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: user name already exists"


class UserNotFoundError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: user name not found"


class RoleExistsError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: role name already exists"


class RoleNotFoundError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: role name not found"


class RoleNotGrantedError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: role is not granted to the user"


class PermissionNotGrantedError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: permission is not granted to the role"


class AuthNotEnabledError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: authentication is not enabled"


class NotLeaderError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: not leader"


class NotCapableError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: not capable"


class NotSupportedForLearnerError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: rpc not supported for learner"


class BadLeaderTransfereeError(ProtocolError):
    code = Code.FAILED_PRECONDITION
    message = "etcdserver: bad leader transferee"


class PermissionDeniedError(ProtocolError):
    code = Code.PERMISSION_DENIED
    message = "etcdserver: permission denied"


class InvalidAuthTokenError(ProtocolError):
    code = Code.UNAUTHENTICATED
    message = "etcdserver: invalid auth token"


class NoLeaderError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: no leader"


class LeaderChangedError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: leader changed"


class StoppedError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: server stopped"


class RequestTimeoutError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: request timed out"


class TimeoutLeaderFailError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: request timed out, possibly due to previous leader failure"


class TimeoutConnectionLostError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: request timed out, possibly due to connection lost"


class UnhealthyError(ProtocolError):
    code = Code.UNAVAILABLE
    message = "etcdserver: unhealthy cluster"


class CorruptError(ProtocolError):
    code = Code.DATA_LOSS
    message = "etcdserver: corrupt cluster"


class WatchCancelledError(ProtocolError):
    code = Code.CANCELLED
    message = "etcdserver: watch canceled"


class DeadlineExceededError(ProtocolError):
    code = Code.DEADLINE_EXCEEDED
    message = "context deadline exceeded"


class StartupError(Exception):
    """The node cannot start, or cannot go on; the message says what is wrong and what to do."""


class ConfigError(StartupError):
    """A flag, environment variable or configuration file is wrong; names it and its value."""


class DataDirError(StartupError):
    """The data directory is locked, foreign, of another format or damaged; names the file."""
