"""``-w table``: members and endpoints in a drawn table; nothing else has one."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import rpc_pb2
from recipes.ctl.printers import rows
from recipes.ctl.printers.base import Hashes, Health, Printer, Statuses


class TablePrinter(Printer):
    """The table format."""

    name = "table"

    def _table(self, header: list[str], lines: rows.Rows) -> None:
        titles = [title.upper() for title in header]
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
        self.write(rule)
        self.write("|" + "|".join(f" {_centre(t, w)} " for t, w in zip(titles, widths, strict=True)) + "|")
        self.write(rule)
        for line in lines:
            self.write("|" + "|".join(f" {cell:>{w}} " for cell, w in zip(line, widths, strict=True)) + "|")
        self.write(rule)

    def member_list(self, response: rpc_pb2.MemberListResponse) -> None:
        self._table(rows.MEMBER_HEADER, rows.member_rows(response))

    def endpoint_health(self, healths: Sequence[Health]) -> None:
        self._table(rows.HEALTH_HEADER, rows.health_rows(healths))

    def endpoint_status(self, statuses: Statuses) -> None:
        self._table(rows.STATUS_HEADER, rows.status_rows(statuses))

    def endpoint_hash_kv(self, hashes: Hashes) -> None:
        self._table(rows.HASH_HEADER, rows.hash_rows(hashes))


def _centre(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)
