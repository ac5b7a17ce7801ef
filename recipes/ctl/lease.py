"""``lease grant``, ``revoke``, ``timetolive``, ``list`` and ``keep-alive``."""

from __future__ import annotations

import time

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_BAD_CONNECTION, EXIT_ERROR, CommandError, bad_args
from recipes.ctl.gotext import parse_int
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import RETRY_SECONDS, CallError, Client

NOT_FOUND_TEXT = "etcdserver: requested lease not found"


def grant(invocation: Invocation) -> None:
    """Make a lease."""
    if len(invocation.words) != 1:
        raise bad_args("lease grant command needs TTL argument")
    try:
        ttl = parse_int(invocation.words[0])
    except ValueError as error:
        raise bad_args(f"bad TTL ({error})") from None
    client = invocation.client()
    try:
        response = client.call(
            "Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl), rpc_pb2.LeaseGrantResponse, invocation.timeout
        )
    except CallError as error:
        raise CommandError(EXIT_ERROR, f"failed to grant lease ({error})") from None
    invocation.printer().lease_grant(response)


def revoke(invocation: Invocation) -> None:
    """End a lease."""
    if len(invocation.words) != 1:
        raise bad_args("lease revoke command needs 1 argument")
    lease_id = _lease_id(invocation.words[0])
    client = invocation.client()
    try:
        response = client.call(
            "Lease/LeaseRevoke",
            rpc_pb2.LeaseRevokeRequest(ID=lease_id),
            rpc_pb2.LeaseRevokeResponse,
            invocation.timeout,
        )
    except CallError as error:
        raise CommandError(EXIT_ERROR, f"failed to revoke lease ({error})") from None
    invocation.printer().lease_revoke(lease_id, response)


def time_to_live(invocation: Invocation) -> None:
    """Show a lease."""
    if len(invocation.words) != 1:
        raise bad_args("lease timetolive command needs lease ID as argument")
    keys = invocation.flags.on("keys")
    client = invocation.client()
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=_lease_id(invocation.words[0]), keys=keys)
    try:
        response = client.call("Lease/LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_BAD_CONNECTION, str(error)) from None
    invocation.printer().lease_time_to_live(response, keys)


def list_leases(invocation: Invocation) -> None:
    """Show all leases."""
    client = invocation.client()
    try:
        response = client.call(
            "Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest(), rpc_pb2.LeaseLeasesResponse, invocation.timeout
        )
    except CallError as error:
        raise CommandError(EXIT_BAD_CONNECTION, str(error)) from None
    invocation.printer().leases(response)


def keep_alive(invocation: Invocation) -> None:
    """Renew a lease, once or until it is gone."""
    if len(invocation.words) != 1:
        raise bad_args("lease keep-alive command needs lease ID as argument")
    lease_id = _lease_id(invocation.words[0])
    once = invocation.flags.on("once")
    client = invocation.client()
    while True:
        response = renew(client, lease_id, None)
        if response.TTL <= 0:
            if once:
                raise CommandError(EXIT_BAD_CONNECTION, NOT_FOUND_TEXT)
            invocation.line(f"lease {lease_id:016x} expired or revoked.")
            return
        invocation.printer().lease_keep_alive(response)
        if once:
            return
        invocation.stdout.flush()
        client.wait(lambda: False, time.monotonic() + response.TTL / 3)


def renew(client: Client, lease_id: int, deadline: float | None) -> rpc_pb2.LeaseKeepAliveResponse:
    """Renew a lease once, on a stream of its own, however often it takes until the deadline.

    Raises:
        CommandError: the server refuses.
    """
    while True:
        try:
            stream = client.stream("Lease/LeaseKeepAlive", deadline)
            stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
            message = client.receive(stream, deadline)
            stream.cancel()
        except CallError as error:
            if error.code != Code.UNAVAILABLE:
                raise CommandError(EXIT_BAD_CONNECTION, str(error)) from None
            message = None
        if message is not None:
            return rpc_pb2.LeaseKeepAliveResponse.FromString(message)
        client.wait(lambda: False, time.monotonic() + RETRY_SECONDS)


def _lease_id(word: str) -> int:
    try:
        return parse_int(word, 16)
    except ValueError as error:
        raise bad_args(f"bad lease ID arg ({error}), expecting ID in Hex") from None
