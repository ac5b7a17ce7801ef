"""``put``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.flags import FlagSet
from recipes.ctl.gotext import parse_int
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError

_NO_VALUE = "put command needs 1 argument and input from stdin or 2 arguments"


def run(invocation: Invocation) -> None:
    """Write a key."""
    request = put_request(invocation.args, invocation.flags, invocation.stdin)
    client = invocation.client()
    try:
        response = client.call("KV/Put", request, rpc_pb2.PutResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    invocation.printer().put(response)


def put_request(args: Sequence[bytes], flags: FlagSet, stdin: BinaryIO) -> rpc_pb2.PutRequest:
    """Make the request of a command line; txn uses it too.

    Raises:
        CommandError: arguments and flags make no request.
    """
    ignore_value = flags.on("ignore-value")
    if not args:
        raise bad_args(_NO_VALUE)
    if ignore_value and len(args) > 1:
        raise bad_args("put command needs only 1 argument when 'ignore-value' is set")
    value = b""
    if not ignore_value:
        value = args[1] if len(args) > 1 else stdin.read()
        if len(args) == 1 and not value:
            raise bad_args(_NO_VALUE)
    try:
        lease = parse_int(flags.text("lease"), 16)
    except ValueError as error:
        raise bad_args(f"bad lease ID ({error}), expecting ID in Hex") from None
    return rpc_pb2.PutRequest(
        key=args[0],
        value=value,
        lease=lease,
        prev_kv=flags.on("prev-kv"),
        ignore_value=ignore_value,
        ignore_lease=flags.on("ignore-lease"),
    )
