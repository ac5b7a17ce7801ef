"""Output formats: one module each, loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from recipes.ctl.printers.base import Printer


def make_printer(name: str, stdout: BinaryIO, *, hex_output: bool) -> Printer | None:
    """Answer the printer of a format, None when there is no such format."""
    if name == "simple":
        from recipes.ctl.printers.simple import SimplePrinter

        return SimplePrinter(stdout, hex_output)
    if name == "json":
        from recipes.ctl.printers.gojson import JsonPrinter

        return JsonPrinter(stdout, hex_output)
    if name == "fields":
        from recipes.ctl.printers.fields import FieldsPrinter

        return FieldsPrinter(stdout, hex_output)
    if name == "table":
        from recipes.ctl.printers.table import TablePrinter

        return TablePrinter(stdout, hex_output)
    if name == "protobuf":
        from recipes.ctl.printers.protobuf import ProtobufPrinter

        return ProtobufPrinter(stdout, hex_output)
    return None
