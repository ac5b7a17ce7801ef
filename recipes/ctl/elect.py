"""``elect``: campaigns and leads until a signal, or tells who leads."""

from __future__ import annotations

from kvserver.proto import kv_pb2, rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.interrupts import Interrupts
from recipes.ctl.invocation import Invocation
from recipes.ctl.ranges import prefix_end
from recipes.ctl.session import Claim, LeaseSession, first_created, next_events
from recipes.ctl.transport import CallError, Client

TTL_SECONDS = 60
"""As etcdctl's."""


def run(invocation: Invocation) -> None:
    """Campaign with a proposal, or observe."""
    listen = invocation.flags.on("listen")
    count = len(invocation.words)
    if count not in (1, 2):
        raise bad_args("elect takes one election name argument and an optional proposal argument")
    client = invocation.client()
    if count == 1 and not listen:
        raise bad_args("no proposal argument but -l not set")
    if count == 2 and listen:
        raise bad_args("proposal given but -l is set")
    with Interrupts(client) as interrupts:
        try:
            if listen:
                _observe(invocation, client, interrupts)
            else:
                _campaign(invocation, client, interrupts)
        except CallError as error:
            if listen and interrupts.seen:
                return
            raise CommandError(EXIT_ERROR, str(error)) from None


def _campaign(invocation: Invocation, client: Client, interrupts: Interrupts) -> None:
    name, proposal = invocation.args
    session = LeaseSession(client, TTL_SECONDS, invocation.timeout)
    claim = Claim(client, session, name, proposal, invocation.timeout)
    try:
        claim.acquire()
        mine = client.call("KV/Range", rpc_pb2.RangeRequest(key=claim.key), rpc_pb2.RangeResponse, invocation.timeout)
        invocation.printer().get(mine)
        invocation.stdout.flush()
        client.wait(lambda: interrupts.seen or session.lost)
        if session.lost:
            raise CommandError(EXIT_ERROR, "elect: session expired")
    finally:
        client.interrupted = False
        session.close()


def _observe(invocation: Invocation, client: Client, interrupts: Interrupts) -> None:
    prefix = invocation.args[0] + b"/"
    while True:
        answer = client.call("KV/Range", first_created(prefix), rpc_pb2.RangeResponse, invocation.timeout)
        if answer.kvs:
            revision, leader = answer.header.revision, answer.kvs[0]
        else:
            revision, leader = _first_leader(client, prefix, answer.header.revision + 1)
        header = answer.header
        header.revision = revision
        _show(invocation, header, leader)
        key = leader.key
        led = True
        while led:
            request = rpc_pb2.WatchCreateRequest(key=key, start_revision=revision + 1)
            for event in next_events(client, request):
                revision = event.kv.mod_revision
                if event.type == kv_pb2.Event.DELETE:
                    led = False
                    break
                header.revision = revision
                _show(invocation, header, event.kv)


def _first_leader(client: Client, prefix: bytes, revision: int) -> tuple[int, kv_pb2.KeyValue]:
    """Wait for the first candidate of an election that has none."""
    request = rpc_pb2.WatchCreateRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        start_revision=revision,
        filters=[rpc_pb2.WatchCreateRequest.NODELETE],
    )
    pair = next_events(client, request)[0].kv
    return pair.mod_revision, pair


def _show(invocation: Invocation, header: rpc_pb2.ResponseHeader, leader: kv_pb2.KeyValue) -> None:
    invocation.printer().get(rpc_pb2.RangeResponse(header=header, kvs=[leader]))
    invocation.stdout.flush()
