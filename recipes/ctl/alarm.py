"""``alarm list`` and ``alarm disarm``."""

from __future__ import annotations

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError, Client


def list_alarms(invocation: Invocation) -> None:
    """Print the alarms that are raised."""
    if invocation.words:
        raise bad_args("alarm list command accepts no arguments")
    invocation.printer().alarm(_alarm(invocation, invocation.client(), rpc_pb2.AlarmRequest()))


def disarm(invocation: Invocation) -> None:
    """Clear all alarms, and print those that were raised."""
    if invocation.words:
        raise bad_args("alarm disarm command accepts no arguments")
    client = invocation.client()
    raised = _alarm(invocation, client, rpc_pb2.AlarmRequest())
    cleared = rpc_pb2.AlarmResponse(header=raised.header)
    for member in raised.alarms:
        request = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=member.memberID, alarm=member.alarm
        )
        cleared.alarms.extend(_alarm(invocation, client, request).alarms)
    invocation.printer().alarm(cleared)


def _alarm(invocation: Invocation, client: Client, request: rpc_pb2.AlarmRequest) -> rpc_pb2.AlarmResponse:
    try:
        return client.call("Maintenance/Alarm", request, rpc_pb2.AlarmResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
