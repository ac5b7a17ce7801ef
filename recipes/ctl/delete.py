"""``del``."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.flags import FlagSet
from recipes.ctl.invocation import Invocation
from recipes.ctl.ranges import resolve
from recipes.ctl.transport import CallError


def run(invocation: Invocation) -> None:
    """Delete a key or a range."""
    request = delete_request(invocation.args, invocation.flags)
    client = invocation.client()
    try:
        response = client.call("KV/DeleteRange", request, rpc_pb2.DeleteRangeResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    invocation.printer().delete(response)


def delete_request(args: Sequence[bytes], flags: FlagSet) -> rpc_pb2.DeleteRangeRequest:
    """Make the request of a command line; txn uses it too.

    Raises:
        CommandError: arguments and flags make no request.
    """
    prefix, from_key = flags.on("prefix"), flags.on("from-key")
    if not 1 <= len(args) <= 2:
        raise bad_args("del command needs one argument as key and an optional argument as range_end")
    if prefix and from_key:
        raise bad_args("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if len(args) > 1 and (prefix or from_key):
        raise bad_args("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
    key, end = resolve(args[0], args[1] if len(args) > 1 else None, prefix=prefix, from_key=from_key)
    return rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=flags.on("prev-kv"))
