"""Commands that go on: watch, lock, elect, keep-alive; as processes, on genuine etcd, beside etcdctl."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.ctl.genuine import Running, Server

PROGRAMS = ("etcdctl", "kvctl")
PAIRS = [(a, b) for a in PROGRAMS for b in PROGRAMS if "kvctl" in (a, b)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("etcd"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def history(server: Server) -> int:
    """Write some history below ``w/``; answer its first revision."""
    before = server.etcdctl(["put", "w/a", "1"])
    assert before.code == 0
    fields = server.etcdctl(["get", "w/a", "-w", "fields"]).stdout.decode()
    revision = int(fields.split('"ModRevision" : ')[1].split("\n")[0])
    server.etcdctl(["put", "w/a", "2"])
    server.etcdctl(["del", "w/a"])
    assert server.etcdctl(["txn"], b'\nput w/a "with space"\nput w/b "\\xff"\n\n\n').code == 0
    return revision


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["PUT", "w/a", "1", "PUT", "w/a", "2", "DELETE", "w/a", "", "PUT", "w/a", "with space", "PUT", "w/b"]),
        (["--hex"], ["PUT", r"\x77\x2f\x61", r"\x31", "PUT", r"\x77\x2f\x61", r"\x32", "DELETE"]),
        (["--prev-kv"], ["PUT", "w/a", "1", "PUT", "w/a", "1", "w/a", "2", "DELETE", "w/a", "2", "w/a", ""]),
    ],
)
def test_watch_prints_events(
    server: Server, history: int, program: str, arguments: list[str], expected: list[str]
) -> None:
    running = server.run(program, "watch", "w/", "--prefix", f"--rev={history}", *arguments)
    assert running.lines(len(expected)) == expected
    assert running.interrupt().code == -signal.SIGINT


@pytest.mark.parametrize(("output", "count"), [("json", 1), ("fields", 34)])
def test_watch_prints_events_in_other_formats_as_etcdctl(server: Server, history: int, output: str, count: int) -> None:
    seen = []
    for program in PROGRAMS:
        running = server.run(program, "watch", "w/", "w0", f"--rev={history}", "--prev-kv", "-w", output)
        seen.append(running.lines(count))
        running.interrupt()
    assert seen[0] == seen[1]
    assert len(seen[0]) == count


@pytest.mark.parametrize("program", PROGRAMS)
def test_watch_with_a_format_that_has_no_events_ends_at_the_first(server: Server, history: int, program: str) -> None:
    outcome = server.run(program, "watch", "w/a", f"--rev={history}", "-w", "table").end()
    assert (outcome.code, outcome.stderr) == (4, b"Error: table not supported as output format\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_watch_runs_a_program_for_each_event(server: Server, history: int, program: str) -> None:
    script = 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
    running = server.run(program, "watch", "w/a", f"--rev={history}", "--", "sh", "-c", script)
    lines = running.lines(16)
    assert [line for line in lines if line.startswith('"')] == [
        '"PUT" "w/a" "1"',
        '"PUT" "w/a" "2"',
        '"DELETE" "w/a" ""',
        '"PUT" "w/a" "with space"',
    ]
    running.interrupt()


@pytest.mark.parametrize("program", PROGRAMS)
def test_watch_takes_the_key_from_the_environment(server: Server, history: int, program: str) -> None:
    environ = {"ETCDCTL_WATCH_KEY": "w/a", "ETCDCTL_WATCH_RANGE_END": "w/z"}
    running = server.run(program, "watch", f"--rev={history}", "--", "echo", "ran", environ=environ)
    assert "ran" in running.lines(16)
    running.interrupt()


@pytest.mark.parametrize("program", PROGRAMS)
def test_watch_ends_when_the_program_fails(server: Server, history: int, program: str) -> None:
    outcome = server.run(program, "watch", "w/a", f"--rev={history + 3}", "--", "sh", "-c", "echo out; exit 3").end()
    assert outcome.code == 1
    assert outcome.stdout == b"PUT\nw/a\nwith space\nout\n"
    assert outcome.stderr == b'command ["sh" "-c" "echo out; exit 3"] error (exit status 3)\n'


@pytest.mark.parametrize("program", PROGRAMS)
def test_interactive_watch_takes_orders(server: Server, history: int, program: str) -> None:
    running = server.run(program, "watch", "-i")
    running.say(f"watch w/b --rev={history}\n")
    assert running.lines(2) == ["PUT", "w/b"]
    running.lines(1)
    running.say(f'watch "w/a" w/b --rev {history} --prev-kv\n')
    assert running.lines(6) == ["PUT", "w/a", "1", "PUT", "w/a", "1"]
    running.lines(10)
    running.say("progress\n")
    assert running.lines(2) == [f"progress notify: {history + 3}"] * 2
    outcome = running.end()
    assert outcome.code == 3
    assert outcome.stderr.endswith(b"Error: error reading watch request line: EOF\n")


def test_watch_resumes_after_a_restart_of_the_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server(tmp_path_factory.mktemp("restarted"))
    try:
        server.kvctl(["put", "r/1", "a"])
        running = server.run("kvctl", "watch", "r/", "--prefix", "--rev=1", "-w", "simple")
        assert running.lines(3) == ["PUT", "r/1", "a"]
        server.halt()
        server.start()
        server.kvctl(["put", "r/2", "b"])
        assert running.lines(3) == ["PUT", "r/2", "b"]
        running.interrupt()
    finally:
        server.stop()


# locks


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_lock_is_held_until_a_signal(server: Server, program: str, number: signal.Signals) -> None:
    running = server.run(program, "lock", "held")
    key, value = running.lines(2)
    assert key.startswith("held/")
    assert value == ""
    assert server.kvctl(["get", "held/", "--prefix", "--keys-only"]).stdout.decode() == f"{key}\n\n"
    outcome = running.interrupt(number)
    assert (outcome.code, outcome.stderr) == (0, b"")
    assert server.kvctl(["get", "held/", "--prefix"]).stdout == b""


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        (["true"], 0, b""),
        (["sh", "-c", "exit 3"], 3, b"Error: exit status 3\n"),
        (["sh", "-c", "kill -9 $$"], 255, b"Error: signal: killed\n"),
        (["/not/there"], 1, b"Error: fork/exec /not/there: no such file or directory\n"),
        (["notthere"], 1, b'Error: exec: "notthere": executable file not found in $PATH\n'),
    ],
)
def test_lock_around_a_program_ends_as_the_program(
    server: Server, program: str, command: list[str], code: int, stderr: bytes
) -> None:
    outcome = server.run(program, "lock", "around", "--", *command).end()
    assert (outcome.code, outcome.stderr) == (code, stderr)
    assert server.kvctl(["get", "around/", "--prefix"]).stdout == b"" or code


@pytest.mark.parametrize("program", PROGRAMS)
def test_lock_tells_the_program_its_key_and_revision(server: Server, program: str) -> None:
    script = 'echo "$ETCD_LOCK_KEY" "$ETCD_LOCK_REV"'
    outcome = server.run(program, "lock", "told", "--ttl=20", "--", "sh", "-c", script).end()
    key, revision = outcome.stdout.decode().split()
    assert key.startswith("told/")
    assert int(revision) > 1
    assert server.kvctl(["get", "told/", "--prefix"]).stdout == b""


def contenders(server: Server, name: str, count: int) -> None:
    """Wait until so many keys claim a name."""
    running = server.run("etcdctl", "watch", f"{name}/", "--prefix", "--rev=1")
    seen = 0
    while seen < count:
        lines = running.lines(1)
        assert lines
        seen += {"PUT": 1, "DELETE": -1}.get(lines[0], 0)
    running.interrupt()


@pytest.mark.parametrize(("holder", "waiter"), PAIRS)
def test_locks_exclude_each_other(server: Server, holder: str, waiter: str) -> None:
    name = f"contended-{holder}-{waiter}"
    first = server.run(holder, "lock", name)
    first_key = first.lines(2)[0]
    second = server.run(waiter, "lock", name, "echo", "mine")
    contenders(server, name, 2)
    assert server.kvctl(["get", f"{name}/", "--prefix", "--keys-only"]).stdout.decode().count(name) == 2
    assert not second.ended
    assert first.interrupt().code == 0
    outcome = second.end()
    assert (outcome.code, outcome.stdout) == (0, b"mine\n")
    assert first_key.startswith(f"{name}/")


def test_waiting_for_a_lock_can_be_interrupted(server: Server) -> None:
    first = server.run("etcdctl", "lock", "queue")
    first.lines(1)
    second = server.run("kvctl", "lock", "queue")
    contenders(server, "queue", 2)
    outcome = second.interrupt()
    assert (outcome.code, outcome.stdout, outcome.stderr) == (1, b"", b"Error: context canceled\n")
    assert server.kvctl(["get", "queue/", "--prefix", "--keys-only"]).stdout.decode().count("queue") == 1
    first.interrupt()


@pytest.mark.parametrize("program", PROGRAMS)
def test_lock_ends_when_its_session_does(server: Server, program: str) -> None:
    running = server.run(program, "lock", "lost", "--ttl=2")
    lease = running.lines(2)[0].partition("/")[2]
    assert server.kvctl(["lease", "revoke", lease]).code == 0
    outcome = running.end()
    assert (outcome.code, outcome.stderr) == (1, b"Error: session expired\n")


def test_a_lock_outlives_its_ttl_while_it_is_held(server: Server) -> None:
    outcome = server.run("kvctl", "lock", "long", "--ttl=2", "--", "sleep", "3").end()
    assert (outcome.code, outcome.stderr) == (0, b"")


# elections


@pytest.mark.parametrize(("leader", "follower"), PAIRS)
def test_elections_take_turns_and_are_observed(server: Server, leader: str, follower: str) -> None:
    name = f"election-{leader}-{follower}"
    observers = [server.run(program, "elect", name, "-l") for program in PROGRAMS]
    first = server.run(leader, "elect", name, "first")
    key, proposal = first.lines(2)
    assert key.startswith(f"{name}/")
    assert proposal == "first"
    second = server.run(follower, "elect", name, "second")
    contenders(server, name, 2)
    for observer in observers:
        assert observer.lines(2) == [key, "first"]
    outcome = first.interrupt()
    assert (outcome.code, outcome.stderr) == (0, b"")
    other, proposal = second.lines(2)
    assert proposal == "second"
    for observer in observers:
        assert observer.lines(2) == [other, "second"]
        assert observer.interrupt(signal.SIGTERM).code == 0
    assert second.interrupt().code == 0
    assert server.kvctl(["get", f"{name}/", "--prefix"]).stdout == b""


@pytest.mark.parametrize("output", ["json", "fields"])
def test_elect_prints_in_other_formats_as_etcdctl(server: Server, output: str) -> None:
    leader = server.run("kvctl", "elect", f"formats-{output}", "p")
    leader.lines(2)
    seen = []
    for program in PROGRAMS:
        observer: Running = server.run(program, "elect", f"formats-{output}", "-l", "-w", output)
        lines = observer.lines(12 if output == "fields" else 1)
        seen.append([line for line in lines if not line.startswith(('"MemberID', '"RaftTerm'))])
        observer.interrupt()
    leader.interrupt()
    assert seen[0] == seen[1]


# leases


@pytest.mark.parametrize("program", PROGRAMS)
def test_keep_alive_renews_until_the_lease_is_gone(server: Server, program: str) -> None:
    lease = server.kvctl(["lease", "grant", "2"]).stdout.decode().split()[1]
    running = server.run(program, "lease", "keep-alive", lease)
    assert running.lines(2) == [f"lease {lease} keepalived with TTL(2)"] * 2
    server.kvctl(["lease", "revoke", lease])
    outcome = running.end()
    assert outcome.code == 0
    assert outcome.stdout.decode().endswith(f"lease {lease} expired or revoked.\n")
