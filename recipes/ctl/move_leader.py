"""``move-leader``."""

from __future__ import annotations

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.gotext import parse_int
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError


def run(invocation: Invocation) -> None:
    """Find the leader among the endpoints, and have it hand over."""
    if len(invocation.words) != 1:
        raise bad_args("move-leader command needs 1 argument")
    try:
        target = parse_int(invocation.words[0], 16, unsigned=True)
    except ValueError as error:
        raise bad_args(str(error)) from None
    client = invocation.client()
    for endpoint in client.endpoints:
        one = client.only(endpoint)
        try:
            status = one.call("Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse, invocation.timeout)
            if status.header.member_id != status.leader:
                continue
            request = rpc_pb2.MoveLeaderRequest(targetID=target)
            response = one.call("Maintenance/MoveLeader", request, rpc_pb2.MoveLeaderResponse, invocation.timeout)
        except CallError as error:
            raise CommandError(EXIT_ERROR, str(error)) from None
        finally:
            one.close()
        invocation.printer().move_leader(status.leader, target, response)
        return
    raise bad_args(f"no leader endpoint given at [{' '.join(client.endpoints)}]")
