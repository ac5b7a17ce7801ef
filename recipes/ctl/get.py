"""``get``."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_BAD_FEATURE, EXIT_ERROR, CommandError, bad_args
from recipes.ctl.flags import FlagSet
from recipes.ctl.gotext import quote
from recipes.ctl.invocation import Invocation
from recipes.ctl.ranges import resolve
from recipes.ctl.transport import CallError

_ORDERS = {
    "": rpc_pb2.RangeRequest.NONE,
    "ASCEND": rpc_pb2.RangeRequest.ASCEND,
    "DESCEND": rpc_pb2.RangeRequest.DESCEND,
}
_TARGETS = {
    "": rpc_pb2.RangeRequest.KEY,
    "KEY": rpc_pb2.RangeRequest.KEY,
    "CREATE": rpc_pb2.RangeRequest.CREATE,
    "MODIFY": rpc_pb2.RangeRequest.MOD,
    "VALUE": rpc_pb2.RangeRequest.VALUE,
    "VERSION": rpc_pb2.RangeRequest.VERSION,
}


def run(invocation: Invocation) -> None:
    """Read a key or a range."""
    flags = invocation.flags
    request = range_request(invocation.args, flags)
    client = invocation.client()
    try:
        response = client.call("KV/Range", request, rpc_pb2.RangeResponse, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None
    printer = invocation.printer()
    if flags.on("count-only") and printer.name != "fields":
        raise bad_args("--count-only is only for `--write-out=fields`")
    if flags.on("print-value-only"):
        from recipes.ctl.printers.simple import SimplePrinter

        if not isinstance(printer, SimplePrinter):
            raise bad_args("print-value-only is only for `--write-out=simple`")
        printer.value_only = True
    printer.get(response)


def range_request(args: Sequence[bytes], flags: FlagSet) -> rpc_pb2.RangeRequest:
    """Make the request of a command line; txn uses it too.

    Raises:
        CommandError: arguments and flags make no request.
    """
    prefix, from_key = flags.on("prefix"), flags.on("from-key")
    if not args:
        raise bad_args("get command needs one argument as key and an optional argument as range_end")
    if prefix and from_key:
        raise bad_args("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if flags.on("keys-only") and flags.on("count-only"):
        raise bad_args("`--keys-only` and `--count-only` cannot be set at the same time, choose one")
    consistency = flags.text("consistency")
    if consistency not in ("s", "l"):
        raise CommandError(EXIT_BAD_FEATURE, f"unknown consistency flag {quote(consistency)}")
    if len(args) > 1 and (prefix or from_key):
        raise bad_args("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
    order = _ORDERS.get(flags.text("order").upper())
    if order is None:
        raise CommandError(EXIT_BAD_FEATURE, f"bad sort order {flags.text('order')}")
    target = _TARGETS.get(flags.text("sort-by").upper())
    if target is None:
        raise CommandError(EXIT_BAD_FEATURE, f"bad sort target {flags.text('sort-by')}")
    key, end = resolve(args[0], args[1] if len(args) > 1 else None, prefix=prefix, from_key=from_key)
    return rpc_pb2.RangeRequest(
        key=key,
        range_end=end,
        limit=flags.number("limit"),
        revision=max(0, flags.number("rev")),
        sort_order=order,
        sort_target=target,
        serializable=consistency == "s",
        keys_only=flags.on("keys-only"),
        count_only=flags.on("count-only"),
    )
