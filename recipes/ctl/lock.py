"""``lock``: holds a named lock until a signal, or while a program runs."""

from __future__ import annotations

import os

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.interrupts import Interrupts
from recipes.ctl.invocation import Invocation
from recipes.ctl.session import LOST_TEXT, Claim, LeaseSession
from recipes.ctl.transport import CallError, Client


def run(invocation: Invocation) -> None:
    """Take the lock, then run the program or wait."""
    if not invocation.words:
        raise bad_args("lock takes a lock name argument and an optional command to execute")
    client = invocation.client()
    with Interrupts(client) as interrupts:
        session = LeaseSession(client, invocation.flags.number("ttl"), invocation.timeout)
        claim = Claim(client, session, invocation.args[0], b"", invocation.timeout)
        try:
            try:
                revision = claim.acquire()
                if len(invocation.words) > 1:
                    _run_program(invocation, claim, revision)
                else:
                    _hold(invocation, client, session, claim, interrupts)
            finally:
                client.interrupted = False
                session.close()
        except CallError as error:
            raise CommandError(EXIT_ERROR, str(error)) from None


def _run_program(invocation: Invocation, claim: Claim, revision: int) -> None:
    program = invocation.words[1:]
    environ = {"ETCD_LOCK_KEY": os.fsdecode(claim.key), "ETCD_LOCK_REV": str(revision)}
    try:
        status = invocation.run_program(program, environ)
    except OSError as error:
        if "/" in program[0]:
            text = f"fork/exec {program[0]}: {(error.strerror or str(error)).lower()}"
        else:
            text = f'exec: "{program[0]}": executable file not found in $PATH'
        raise CommandError(EXIT_ERROR, text) from None
    if status < 0:
        import signal

        raise CommandError(255, f"signal: {(signal.strsignal(-status) or str(-status)).lower()}")
    if status:
        raise CommandError(status, f"exit status {status}")


def _hold(invocation: Invocation, client: Client, session: LeaseSession, claim: Claim, interrupts: Interrupts) -> None:
    mine = client.call("KV/Range", rpc_pb2.RangeRequest(key=claim.key), rpc_pb2.RangeResponse, invocation.timeout)
    if not mine.kvs:
        raise CommandError(EXIT_ERROR, "lock lost on init")
    invocation.printer().get(mine)
    invocation.stdout.flush()
    client.wait(lambda: interrupts.seen or session.lost)
    if session.lost:
        raise CommandError(EXIT_ERROR, LOST_TEXT)
