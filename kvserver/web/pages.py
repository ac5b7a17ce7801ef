"""The plain pages of a member: health, version, metrics, members.

Each page is a function from an exchange to its answer, written after etcd's: same bodies, same status, same headers.
``/livez`` and ``/readyz`` are those of etcd 3.5.11 and later.

Not here: RPCs (``gateway``), which path leads where (``site``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson

from kvserver.metrics import CONTENT_TYPE, Metrics, Value
from kvserver.proto.rpc_pb2 import MemberListRequest, MemberListResponse
from kvserver.version import ETCD_CLUSTER_VERSION, ETCD_VERSION, KVSERVER_VERSION
from kvserver.web.exchange import FAILURE_TYPE, JSON_TYPE, TEXT_TYPE, Exchange

if TYPE_CHECKING:
    from kvserver.node.service import NodeService

log = logging.getLogger(__name__)

ALLOW_GET = b"Allow: GET\r\n"
Query = Mapping[str, list[str]]
Check = Callable[[], str]
"""A check of ``/livez`` or ``/readyz``: what is wrong, or nothing."""


def query_of(exchange: Exchange) -> Query:
    """Answer the parameters of the request's query."""
    return parse_qs(exchange.start_line.path.partition("?")[2], keep_blank_values=True)


class Pages:
    """The pages of one member.

    Args:
        node: the member.
        metrics: what ``/metrics`` shows.
    """

    def __init__(self, node: NodeService, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics
        self._health_success = 0
        self._health_failures = 0
        metrics.add_source(self._samples)

    def _samples(self) -> Mapping[str, Value]:
        return {
            "etcd_server_health_success": self._health_success,
            "etcd_server_health_failures": self._health_failures,
            "etcd_server_id": {(f"{self._node.member_id:x}",): 1},
        }

    def _health_of(self, serializable: bool, exclude: frozenset[str]) -> str:
        """Answer why the member is not healthy, or nothing; counts and logs it."""
        healthy, reason = self._node.healthy(serializable, exclude)
        if healthy:
            self._health_success += 1
            return ""
        self._health_failures += 1
        log.warning("serving unhealthy: %s", reason)
        return reason or "unhealthy"

    def health(self, exchange: Exchange) -> None:
        """``/health``: whether this member serves; 503 when not."""
        query = query_of(exchange)
        exclude = frozenset(name for names in query.get("exclude", []) for name in names.split(","))
        reason = self._health_of(query.get("serializable", [""])[0] == "true", exclude)
        if reason:
            exchange.send_text(503, orjson.dumps({"health": "false", "reason": reason}).decode())
        else:
            exchange.send_body(200, TEXT_TYPE, b'{"health":"true","reason":""}')

    def livez(self, exchange: Exchange) -> None:
        """``/livez``: whether restarting this member would help."""
        self._checks(exchange, "livez", {"serializable_read": lambda: self._no_alarm_but(True, None)})

    def readyz(self, exchange: Exchange) -> None:
        """``/readyz``: whether this member can take traffic."""
        self._checks(
            exchange,
            "readyz",
            {
                "data_corruption": lambda: self._no_alarm_but(True, "CORRUPT"),
                "serializable_read": lambda: self._no_alarm_but(True, None),
                "linearizable_read": lambda: self._no_alarm_but(False, None),
            },
        )

    def _no_alarm_but(self, serializable: bool, alarm: str | None) -> str:
        """Answer what is wrong, looking at one alarm or none."""
        exclude = frozenset({"NOSPACE", "CORRUPT"} - {alarm})
        healthy, reason = self._node.healthy(serializable, exclude)
        return "" if healthy else reason or "unhealthy"

    def _checks(self, exchange: Exchange, name: str, checks: dict[str, Check]) -> None:
        query = query_of(exchange)
        wanted = exchange.start_line.path.partition("?")[0].removeprefix("/" + name).strip("/")
        if wanted:
            if wanted not in checks:
                exchange.send_text(404, "404 page not found")
                return
            checks = {wanted: checks[wanted]}
        excluded = {one for names in query.get("exclude", []) for one in names.split(",")}
        lines, failed = [], False
        for check, run in checks.items():
            problem = "" if check in excluded else run()
            failed = failed or bool(problem)
            lines.append(f"[-]{check} failed: {problem}\n" if problem else f"[+]{check} ok\n")
        text = "".join(lines)
        if failed:
            self._health_failures += 1
            exchange.send_text(503, text)
        else:
            self._health_success += 1
            body = text + "ok\n" if "verbose" in query else "ok\n"
            exchange.send_body(200, FAILURE_TYPE, body.encode())

    def version(self, exchange: Exchange) -> None:
        """``/version``: of the server and of the cluster, and ours."""
        body = {"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_CLUSTER_VERSION, "kvserver": KVSERVER_VERSION}
        exchange.send_body(200, JSON_TYPE, orjson.dumps(body))

    def metrics(self, exchange: Exchange) -> None:
        """``/metrics`` in Prometheus's text format."""
        exchange.send_body(200, f"Content-Type: {CONTENT_TYPE}\r\n".encode(), self._metrics.render())

    def members(self, exchange: Exchange) -> None:
        """``/v2/members``: the members as etcd 2 showed them; old tools discover clusters by it."""

        def done(result: object) -> None:
            if not isinstance(result, bytes):
                exchange.send_text(503, str(result))
                return
            members = [
                {
                    "id": f"{member.ID:x}",
                    "name": member.name,
                    "peerURLs": list(member.peerURLs),
                    "clientURLs": list(member.clientURLs),
                }
                for member in MemberListResponse.FromString(result).members
            ]
            headers = f"X-Etcd-Cluster-Id: {self._node.cluster_id:x}\r\n".encode() + JSON_TYPE
            exchange.send_body(200, headers, orjson.dumps({"members": members}) + b"\n")

        self._node.member_list(MemberListRequest(), done)
