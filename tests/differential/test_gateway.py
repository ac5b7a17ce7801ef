"""The same HTTP requests on both servers, made with curl: status, content type and JSON body are the same.

Different by intent: ``/v3alpha/`` is served here, ``/version`` also names this program's version.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from typing import Any

import pytest

from tests.differential.harness import STEP_SECONDS_MAX, Outcome, Pair, Scenario, Side, Step, cases, hide_in, text_of


def b64(text: str | bytes) -> str:
    """Encode as the gateway's bytes."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def curl(side: Side, *args: str) -> tuple[str, str, str]:
    """Run curl; answers status, content type and body."""
    done = subprocess.run(
        ["curl", "-sS", "--max-time", str(STEP_SECONDS_MAX), "-w", "\n%{http_code} %{content_type}", *args],
        capture_output=True,
        check=False,
    )
    body, _, tail = text_of(done.stdout).rpartition("\n")
    status, _, content_type = tail.partition(" ")
    return status, content_type, body


def post(
    path: str,
    body: Any,
    *,
    name: str | None = None,
    hide: tuple[str, ...] = (),
    capture: dict[str, str] | None = None,
    lines: int = 0,
) -> Step:
    """POST a JSON body (or text as it is).

    Args:
        path: the path.
        body: the value, or text; strings may hold placeholders.
        name: the step's name if not path and body.
        hide: patterns masked in this step.
        capture: what to remember of the answer, by name: patterns with one group.
        lines: end after so many lines of an endless answer.
    """
    text = body if isinstance(body, str) else json.dumps(body)

    def run(side: Side) -> Outcome:
        data = re.sub(r"<<(r(?:[+-]\d+)?|\w+(?::d)?)>>", lambda found: side.expand("{" + found[1] + "}"), text)
        args = ["-X", "POST", side.server.client_url + path, "-d", data]
        if lines:
            return {"lines": hide_in("\n".join(_first_lines(args, lines)), hide)}
        status, content_type, answer = curl(side, *args)
        for key, pattern in (capture or {}).items():
            found = re.search(pattern, answer)
            side.captured[key] = f"{int(found.group(1)):x}" if found else f"(no {key})"
        return {"status": status, "content type": content_type, "body": hide_in(answer, hide)}

    return Step(name or f"{path} {text}"[:120], run)


def _first_lines(args: list[str], count: int) -> list[str]:
    process = subprocess.Popen(["curl", "-sSN", "--max-time", str(STEP_SECONDS_MAX), *args], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        return [text_of(process.stdout.readline().rstrip()) for _ in range(count)]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def request(method: str, path: str, *args: str, hide: tuple[str, ...] = ()) -> Step:
    """Make any request."""

    def run(side: Side) -> Outcome:
        status, content_type, body = curl(side, "-X", method, side.server.client_url + path, *args)
        return {"status": status, "content type": content_type, "body": hide_in(body, hide)}

    return Step(f"{method} {path} {' '.join(args)}".strip(), run)


A, B, C = b64("a"), b64("b"), b64("c")

KV = Scenario(
    "gateway kv",
    [
        post("/v3/kv/put", {"key": A, "value": b64("1")}),
        post("/v3/kv/put", {"key": B, "value": b64("2")}),
        post("/v3/kv/put", {"key": A, "value": b64("3"), "prev_kv": True}),
        post("/v3/kv/put", {"key": A, "value": b64("4"), "prevKv": True}),
        post("/v3/kv/put", {"key": A}, name="put no value"),
        post("/v3/kv/put", {}),
        post("/v3/kv/put", {"key": A, "lease": "77"}),
        post("/v3/kv/put", {"key": A, "lease": 77}),
        post("/v3/kv/put", {"key": A, "ignore_value": True, "value": A}),
        post("/v3/kv/put", {"key": A, "unknown_field": 5}),
        post("/v3/kv/range", {"key": A}),
        post("/v3/kv/range", {"key": B, "serializable": True}),
        post("/v3/kv/range", {"key": b64("nothing")}),
        post("/v3/kv/range", {"key": b64(b"\0"), "range_end": b64(b"\0")}),
        post("/v3/kv/range", {"key": b64(b"\0"), "rangeEnd": b64(b"\0"), "limit": 1}),
        post("/v3/kv/range", {"key": b64(b"\0"), "range_end": b64(b"\0"), "limit": "1", "sort_order": "DESCEND"}),
        post("/v3/kv/range", {"key": b64(b"\0"), "range_end": b64(b"\0"), "sort_target": "MOD", "sort_order": 2}),
        post("/v3/kv/range", {"key": b64(b"\0"), "range_end": b64(b"\0"), "keys_only": True}),
        post("/v3/kv/range", {"key": b64(b"\0"), "range_end": b64(b"\0"), "count_only": True}),
        post("/v3/kv/range", {"key": A, "revision": "<<r+1>>"}, name="range of the past"),
        post("/v3/kv/range", {"key": A, "revision": "1"}),
        post("/v3/kv/range", {"key": A, "revision": "999999"}),
        post("/v3/kv/range", {}),
        post("/v3/kv/range", ""),
        post("/v3/kv/range", "{bad", hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", "[]", hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", {"key": "!!"}, hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", {"key": 5}, hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", {"key": A, "limit": "x"}, hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", {"key": A, "sort_order": "UP"}, hide=(r'(?<="error":).*',)),
        post("/v3/kv/range", {"key": None}),
        post("/v3beta/kv/range", {"key": A}),
        post("/v3/kv/deleterange", {"key": B, "prev_kv": True}),
        post("/v3/kv/deleterange", {"key": B}),
        post("/v3/kv/deleterange", {}),
        post(
            "/v3/kv/txn",
            {
                "compare": [{"key": A, "result": "EQUAL", "target": "VALUE", "value": b64("4")}],
                "success": [
                    {"request_put": {"key": C, "value": b64("x")}},
                    {"requestRange": {"key": A}},
                    {"request_delete_range": {"key": C}},
                ],
                "failure": [{"request_range": {"key": B}}],
            },
            name="txn put and delete of one key",
        ),
        post(
            "/v3/kv/txn",
            {
                "compare": [{"key": A, "target": "MOD", "result": "GREATER", "mod_revision": "1"}],
                "success": [
                    {"request_put": {"key": C, "value": b64("x")}},
                    {"requestRange": {"key": A}},
                    {"request_delete_range": {"key": b64("zz")}},
                    {"request_txn": {"success": [{"request_range": {"key": C}}]}},
                ],
            },
            name="txn",
        ),
        post("/v3/kv/txn", {"success": [{}]}),
        post("/v3/kv/txn", {}),
        post("/v3/kv/compaction", {"revision": "<<r+1>>"}, name="compaction"),
        post("/v3/kv/compaction", {"revision": "<<r+1>>", "physical": True}, name="compaction again"),
        post("/v3/kv/compaction", {"revision": 999999}),
        request("GET", "/v3/kv/range"),
        request("PUT", "/v3/kv/range"),
        request("POST", "/v3/kv/nothing", "-d", "{}"),
        request("POST", "/v3/nothing", "-d", "{}"),
        request("GET", "/nothing"),
        request("OPTIONS", "/v3/kv/range"),
    ],
)

REST = Scenario(
    "gateway",
    [
        post("/v3/lease/grant", {"TTL": "100", "ID": "4242"}),
        post("/v3/lease/grant", {"TTL": 100, "ID": 4242}, name="lease grant again"),
        post("/v3/lease/grant", {"TTL": 100}, capture={"lease": r'"ID":"(\d+)"'}),
        post("/v3/lease/grant", {}, capture={"zero": r'"ID":"(\d+)"'}, name="lease grant without TTL"),
        post("/v3/lease/grant", {"TTL": "9000000001"}),
        post("/v3/kv/put", {"key": A, "lease": "4242"}),
        post("/v3/lease/timetolive", {"ID": "4242", "keys": True}, hide=(r'"TTL":"\d+"',)),
        post("/v3/kv/lease/timetolive", {"ID": "4242"}, hide=(r'"TTL":"\d+"',)),
        post("/v3/lease/timetolive", {"ID": "99"}),
        post("/v3/lease/keepalive", {"ID": "4242"}),
        post("/v3/lease/keepalive", {"ID": "99"}),
        post("/v3/lease/keepalive", {"ID": "<<lease:d>>"}, name="keepalive of a chosen id"),
        post("/v3/lease/leases", {}, hide=(r'"leases":.*',)),
        post("/v3/lease/revoke", {"ID": "4242"}),
        post("/v3/lease/revoke", {"ID": "4242"}, name="lease revoke again"),
        post("/v3/kv/lease/revoke", {"ID": "99"}),
        post("/v3/kv/put", {"key": A, "value": b64("w1")}, name="put before watch"),
        post("/v3/kv/put", {"key": A, "value": b64("w2")}, name="put before watch 2"),
        post("/v3/watch", {"create_request": {"key": A, "start_revision": "<<r+1>>"}}, lines=2, name="watch"),
        post(
            "/v3/watch",
            {"create_request": {"key": A, "startRevision": "<<r+3>>", "prevKv": True, "filters": ["NODELETE"]}},
            lines=2,
            name="watch with prev_kv",
        ),
        post("/v3/watch", {"create_request": {"key": A, "start_revision": "1"}}, lines=2, name="watch compacted"),
        post("/v3/watch", {"create_request": {"key": B, "range_end": A}}, lines=1, name="watch an empty range"),
        post("/v3/cluster/member/list", {}),
        post("/v3/cluster/member/list", {"linearizable": True}),
        post("/v3/maintenance/status", {}, hide=(r'"(version|dbSize\w*|raft\w*)":"[^"]*"',)),
        post("/v3/maintenance/alarm", {}),
        post("/v3/maintenance/alarm", {"action": "GET"}),
        post("/v3/maintenance/hash", {}, hide=(r'"hash":\d+',)),
        post("/v3/maintenance/defragment", {}),
        post("/v3/maintenance/transfer-leadership", {"targetID": "5"}),
        post("/v3/auth/status", {}),
        post("/v3/auth/authenticate", {"name": "root", "password": "x"}),
        post("/v3/auth/enable", {}),
        post("/v3/auth/disable", {}),
        post("/v3/auth/user/list", {}),
        post("/v3/auth/role/list", {}),
        post("/v3/auth/user/get", {"name": "x"}),
        post("/v3/auth/role/get", {"role": "x"}),
        post("/v3/auth/user/add", {}),
        post("/v3/auth/role/add", {}),
        post("/v3/auth/user/delete", {"name": "x"}),
        post("/v3/auth/user/changepw", {"name": "x"}),
        post("/v3/auth/user/grant", {"user": "x", "role": "y"}),
        post("/v3/auth/user/revoke", {"name": "x", "role": "y"}),
        post("/v3/auth/role/delete", {"role": "x"}),
        post("/v3/auth/role/grant", {"name": "x", "perm": {"key": A, "permType": "READ"}}),
        post("/v3/auth/role/revoke", {"role": "x", "key": A}),
        post("/v3/lease/grant", {"TTL": "600", "ID": "4097"}),
        post("/v3/lock/lock", {"name": b64("m"), "lease": "4097"}),
        post("/v3/lock/lock", {"name": b64("m"), "lease": "99"}),
        post("/v3/lock/unlock", {"key": b64("m/1001")}),
        post("/v3/lock/unlock", {}),
        post("/v3/election/leader", {"name": b64("e")}),
        post(
            "/v3/election/campaign", {"name": b64("e"), "lease": "4097", "value": A}, capture={"rev": r'"rev":"(\d+)"'}
        ),
        post("/v3/election/leader", {"name": b64("e")}, name="election leader"),
        post("/v3/election/observe", {"name": b64("e")}, lines=1),
        post(
            "/v3/election/proclaim",
            {"leader": {"name": b64("e"), "key": b64("e/1001"), "rev": "<<rev:d>>", "lease": "4097"}, "value": B},
            name="proclaim",
        ),
        post("/v3/election/proclaim", {}),
        post(
            "/v3/election/resign",
            {"leader": {"name": b64("e"), "key": b64("e/1001"), "rev": "<<rev:d>>", "lease": "4097"}},
            name="resign",
        ),
        post("/v3/election/resign", {}),
        request("GET", "/health"),
        request("GET", "/health?serializable=true"),
        request("GET", "/version", hide=(r'(,"kvserver":"[^"]*")?}$',)),
        request("GET", "/metrics", hide=(r"(?s).*",)),
        request("POST", "/health", "-d", "{}"),
    ],
)

SCENARIOS = [KV, REST]


@pytest.mark.parametrize(("scenario", "step"), cases(SCENARIOS))
def test_gateway(pair: Pair, scenario: Scenario, step: Step) -> None:
    ours, genuine = pair.run(scenario)[step.name]
    assert ours == genuine
