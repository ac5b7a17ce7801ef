"""``txn``: reads comparisons and operations from standard input."""

from __future__ import annotations

from io import BytesIO

from kvserver.proto import rpc_pb2
from recipes.ctl.commands import Command, UnknownCommandError
from recipes.ctl.delete import delete_request
from recipes.ctl.exits import EXIT_BAD_CONNECTION, EXIT_ERROR, EXIT_INVALID_INPUT, CommandError, bad_args
from recipes.ctl.flags import FlagError
from recipes.ctl.get import range_request
from recipes.ctl.gotext import parse_int, quote
from recipes.ctl.invocation import Invocation
from recipes.ctl.put import put_request
from recipes.ctl.scanning import scan_comparison, split_words
from recipes.ctl.transport import CallError
from recipes.ctl.tree import del_command, get_command, put_command

_RESULTS = {
    "=": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    ">": rpc_pb2.Compare.GREATER,
    "<": rpc_pb2.Compare.LESS,
}
_TARGETS = {
    "ver": rpc_pb2.Compare.VERSION,
    "version": rpc_pb2.Compare.VERSION,
    "c": rpc_pb2.Compare.CREATE,
    "create": rpc_pb2.Compare.CREATE,
    "m": rpc_pb2.Compare.MOD,
    "mod": rpc_pb2.Compare.MOD,
    "val": rpc_pb2.Compare.VALUE,
    "value": rpc_pb2.Compare.VALUE,
    "lease": rpc_pb2.Compare.LEASE,
}


def run(invocation: Invocation) -> None:
    """Read a txn and run it."""
    if invocation.words:
        raise bad_args("txn command does not accept argument")
    client = invocation.client()
    request = rpc_pb2.TxnRequest()
    _prompt(invocation, "compares:")
    for line in _lines(invocation):
        request.compare.append(parse_compare(line))
    for title, operations in (
        ("success requests (get, put, del):", request.success),
        ("failure requests (get, put, del):", request.failure),
    ):
        _prompt(invocation, title)
        for line in _lines(invocation):
            operations.append(parse_operation(line))
    try:
        response = client.call("KV/Txn", request, rpc_pb2.TxnResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    invocation.printer().txn(response)


def _prompt(invocation: Invocation, text: str) -> None:
    if invocation.flags.on("interactive"):
        invocation.line(text)
        invocation.stdout.flush()


def _lines(invocation: Invocation) -> list[bytes]:
    """Read up to an empty line."""
    lines: list[bytes] = []
    while True:
        line = invocation.stdin.readline()
        if not line.endswith(b"\n"):
            raise CommandError(EXIT_INVALID_INPUT, "EOF")
        line = line.strip()
        if not line:
            return lines
        lines.append(line)


def parse_compare(line: bytes) -> rpc_pb2.Compare:
    """Make the comparison that a line says.

    Raises:
        CommandError: it says none.
    """
    text = line.decode("utf-8", "surrogateescape")
    head, parenthesis, rest = line.partition(b"(")
    if not parenthesis:
        raise CommandError(EXIT_INVALID_INPUT, f"malformed comparison: {text}")
    target = head.decode("utf-8", "surrogateescape")
    found, key, operator_bytes, value = scan_comparison(rest)
    operator = operator_bytes.decode("utf-8", "surrogateescape")
    if found != 3:
        got = f"{target}({quote(key)}) {operator} {quote(value)}"
        raise CommandError(EXIT_INVALID_INPUT, f"malformed comparison: {text}; got {got}")
    kind = _TARGETS.get(target)
    if kind is None:
        raise CommandError(EXIT_INVALID_INPUT, f"malformed comparison: {text} (unknown target {target})")
    compare = rpc_pb2.Compare(key=key, target=kind)
    number = 0
    if kind != rpc_pb2.Compare.VALUE:
        try:
            number = parse_int(value.decode("utf-8", "surrogateescape"), 16 if kind == rpc_pb2.Compare.LEASE else 10)
        except ValueError:
            raise CommandError(EXIT_INVALID_INPUT, f"invalid txn compare request: {text}") from None
    result = _RESULTS.get(operator)
    if result is None:
        # etcdctl panics here, with this exit code.
        raise CommandError(EXIT_BAD_CONNECTION, f"malformed comparison: {text} (unknown operator {operator})")
    compare.result = result
    if kind == rpc_pb2.Compare.VALUE:
        compare.value = value
    elif kind == rpc_pb2.Compare.VERSION:
        compare.version = number
    elif kind == rpc_pb2.Compare.CREATE:
        compare.create_revision = number
    elif kind == rpc_pb2.Compare.MOD:
        compare.mod_revision = number
    else:
        compare.lease = number
    return compare


def parse_operation(line: bytes) -> rpc_pb2.RequestOp:
    """Make the operation that a line says: a ``get``, ``put`` or ``del`` with the flags of these commands.

    A ``put`` needs its value in the line: standard input holds the txn itself.

    Raises:
        CommandError: it says none.
    """
    text = line.decode("utf-8", "surrogateescape")
    words = split_words(line)
    if len(words) < 2:
        raise CommandError(EXIT_INVALID_INPUT, f"invalid txn compare request: {text}")
    root = Command("txn", "", children=(put_command(), get_command(), del_command()))
    try:
        command, rest = root.find([word.decode("utf-8", "surrogateescape") for word in words])
        flags = command.flag_set()
        args = [word.encode("utf-8", "surrogateescape") for word in flags.parse(rest)]
    except (UnknownCommandError, FlagError):
        raise CommandError(EXIT_INVALID_INPUT, f"invalid txn request: {text}") from None
    if command.name == "put":
        return rpc_pb2.RequestOp(request_put=put_request(args, flags, BytesIO()))
    if command.name == "get":
        return rpc_pb2.RequestOp(request_range=range_request(args, flags))
    if command.name == "del":
        return rpc_pb2.RequestOp(request_delete_range=delete_request(args, flags))
    raise CommandError(EXIT_INVALID_INPUT, f"invalid txn request: {text}")
