"""``compaction``."""

from __future__ import annotations

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.gotext import parse_int
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError


def run(invocation: Invocation) -> None:
    """Forget history below a revision."""
    if len(invocation.words) != 1:
        raise bad_args("compaction command needs 1 argument")
    try:
        revision = parse_int(invocation.words[0])
    except ValueError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    request = rpc_pb2.CompactionRequest(revision=revision, physical=invocation.flags.on("physical"))
    client = invocation.client()
    try:
        client.call("KV/Compact", request, rpc_pb2.CompactionResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    invocation.line(f"compacted revision {revision}")
