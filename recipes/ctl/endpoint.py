"""``endpoint health``, ``status`` and ``hashkv``: each endpoint is asked by itself."""

from __future__ import annotations

import time

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError
from recipes.ctl.invocation import Invocation
from recipes.ctl.printers.base import Health
from recipes.ctl.settings import make_client
from recipes.ctl.transport import CallError, Client


def cluster_endpoints(invocation: Invocation) -> list[str]:
    """Answer the endpoints to ask: those given, or all of the cluster with ``--cluster``.

    Raises:
        CommandError: the members cannot be read.
    """
    if not invocation.flags.on("cluster"):
        return invocation.flags.texts("endpoints")
    try:
        members = invocation.client().call(
            "Cluster/MemberList",
            rpc_pb2.MemberListRequest(linearizable=True),
            rpc_pb2.MemberListResponse,
            invocation.timeout,
        )
    except CallError as error:
        text = f"failed to fetch endpoints from etcd cluster member list: {error}"
        raise CommandError(EXIT_ERROR, text) from None
    return [url for member in members.members for url in member.clientURLs]


def health(invocation: Invocation) -> None:
    """Say which endpoints answer a linearizable read."""
    invocation.printer()
    healths = [_health(invocation, make_client(invocation, [e])) for e in cluster_endpoints(invocation)]
    printer = invocation.printer()
    printer.endpoint_health(healths)
    invocation.stdout.flush()
    sick = [health for health in healths if not health.healthy]
    if printer.name == "simple":
        for one in sick:
            invocation.complain(f"{one.endpoint} is unhealthy: failed to commit proposal: {one.error}")
    if sick:
        raise CommandError(EXIT_ERROR, "unhealthy cluster")


def _health(invocation: Invocation, client: Client) -> Health:
    started = time.perf_counter_ns()
    error_text = ""
    try:
        client.authenticate()
        started = time.perf_counter_ns()
        client.call("KV/Range", rpc_pb2.RangeRequest(key=b"health"), rpc_pb2.RangeResponse, invocation.timeout)
        took = time.perf_counter_ns() - started
        alarms = client.call(
            "Maintenance/Alarm",
            rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET),
            rpc_pb2.AlarmResponse,
            invocation.timeout,
        )
        if alarms.alarms:
            names = "".join(f"{rpc_pb2.AlarmType.Name(member.alarm)} " for member in alarms.alarms)
            error_text = f"Active Alarm(s): {names}"
    except CallError as error:
        took = time.perf_counter_ns() - started
        # A refusal went through consensus too.
        error_text = "" if error.code == Code.PERMISSION_DENIED else str(error)
    except CommandError as error:
        took, error_text = time.perf_counter_ns() - started, error.text or ""
    finally:
        client.close()
    return Health(client.endpoints[0], took, error_text)


def status(invocation: Invocation) -> None:
    """Print each endpoint's status."""
    client = invocation.client()
    answers = []
    failed = False
    for endpoint in cluster_endpoints(invocation):
        one = client.only(endpoint)
        try:
            response = one.call(
                "Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse, invocation.timeout
            )
            answers.append((endpoint, response))
        except CallError as error:
            failed = True
            invocation.complain(f"Failed to get the status of endpoint {endpoint} ({error})")
        finally:
            one.close()
    invocation.printer().endpoint_status(answers)
    if failed:
        raise CommandError(EXIT_ERROR, None)


def hash_kv(invocation: Invocation) -> None:
    """Print the hash of each endpoint's history."""
    client = invocation.client()
    request = rpc_pb2.HashKVRequest(revision=invocation.flags.number("rev"))
    answers = []
    failure: CallError | None = None
    for endpoint in cluster_endpoints(invocation):
        one = client.only(endpoint)
        try:
            response = one.call("Maintenance/HashKV", request, rpc_pb2.HashKVResponse, invocation.timeout)
            answers.append((endpoint, response))
        except CallError as error:
            failure = error
            invocation.complain(f"Failed to get the hash of endpoint {endpoint} ({error})")
        finally:
            one.close()
    invocation.printer().endpoint_hash_kv(answers)
    if failure is not None:
        raise CommandError(EXIT_ERROR, str(failure))
