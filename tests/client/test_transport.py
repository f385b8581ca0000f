from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask import errors
from semtask.client.address import NotRunning, TcpAddress, UnixAddress, address_of
from semtask.client.http import READS
from semtask.client.transport import Transport
from semtask.config.loading import load
from semtask.protocol.methods import METHODS
from tests.client.fake import Fake, answer, failure, hang_up, raw, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    with serving(tmp_path / "run") as server:
        yield server


@pytest.fixture
def transport(fake: Fake) -> Iterator[Transport]:
    with Transport(UnixAddress(fake.run_dir), notice=pytest.fail) as connected:
        yield connected


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_one_connection_serves_many_requests(fake: Fake, transport: Transport) -> None:
    fake.script = [answer({"n": 1}), answer({"n": 2})]
    assert transport.call("admin.stats.v1", {}) == {"n": 1}
    assert transport.call("dev.get_job.v1", {"job_id": "ä"}) == {"n": 2}
    assert fake.connections == 1
    assert fake.requests[1] == {"jsonrpc": "2.0", "id": 1, "method": "dev.get_job.v1", "params": {"job_id": "ä"}}
    assert "POST /rpc HTTP/1.1" in fake.heads[0]
    assert "Content-Type: application/json" in fake.heads[0]


def test_a_large_answer_arrives_whole(fake: Fake, transport: Transport) -> None:
    text = "x" * 3_000_000
    fake.script = [answer({"text": text})]
    assert transport.call("admin.stats.v1", {})["text"] == text


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 60] * 4)
    with serving(deep) as fake, Transport(UnixAddress(deep)) as transport:
        fake.script = [answer(1)]
        assert transport.call("admin.stats.v1", {}) == 1


@pytest.mark.parametrize("missing", ["folder", "socket", "listener"])
def test_nobody_there(tmp_path: Path, missing: str) -> None:
    run = tmp_path / "run"
    if missing != "folder":
        run.mkdir()
    if missing == "listener":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run / "rpc.sock"))
    before = open_fds()
    with pytest.raises(NotRunning, match="semtask up"):
        Transport(UnixAddress(run)).call("admin.stats.v1", {})
    assert open_fds() == before


def test_a_stale_connection_is_replaced_for_every_request(fake: Fake, transport: Transport) -> None:
    fake.script = [answer(1, keep=False), answer(2)]
    assert transport.call("admin.stats.v1", {}) == 1
    wait_for_hangup(transport)
    assert transport.call("dev.cancel.v1", {"job_id": "x"}) == 2
    assert [r["method"] for r in fake.requests] == ["admin.stats.v1", "dev.cancel.v1"]


def wait_for_hangup(transport: Transport) -> None:
    import select

    assert transport._connection is not None
    assert select.select([transport._connection], [], [], 10)[0]


SAFE: list[tuple[str, dict[str, Any]]] = [
    ("dev.get_job.v1", {"job_id": "x"}),
    ("dev.enqueue.v1", {"job_type": "x", "idempotency_key": "k"}),
    ("dev.enqueue_many.v1", {"jobs": [{"idempotency_key": "a"}, {"idempotency_key": "b"}]}),
]
UNSAFE: list[tuple[str, dict[str, Any]]] = [
    ("dev.enqueue.v1", {"job_type": "x"}),
    ("dev.enqueue_many.v1", {"jobs": [{"idempotency_key": "a"}, {}]}),
    ("dev.cancel.v1", {"tag": "x"}),
    ("queues.pause.v1", {"queue": "x"}),
]


@pytest.mark.parametrize(("method", "params"), SAFE)
def test_a_lost_answer_is_asked_for_again(
    fake: Fake, transport: Transport, method: str, params: dict[str, Any]
) -> None:
    fake.script = [hang_up, answer("second")]
    assert transport.call(method, params) == "second"
    assert [r["method"] for r in fake.requests] == [method, method]
    assert fake.requests[0]["params"] == fake.requests[1]["params"]


@pytest.mark.parametrize(("method", "params"), UNSAFE)
def test_what_could_happen_twice_is_sent_once(
    fake: Fake, transport: Transport, method: str, params: dict[str, Any]
) -> None:
    fake.script = [hang_up]
    with pytest.raises(errors.DaemonUnavailable, match="before you repeat it"):
        transport.call(method, params)
    assert len(fake.requests) == 1


def test_a_daemon_that_is_being_killed_may_break_the_next_connection_too(fake: Fake, transport: Transport) -> None:
    fake.script = [hang_up, hang_up, hang_up, answer(1)]
    assert transport.call("admin.stats.v1", {}) == 1


def test_a_read_is_not_repeated_for_ever(fake: Fake, transport: Transport) -> None:
    fake.script = [hang_up] * 4
    with pytest.raises(errors.DaemonUnavailable, match=r"broke 4 times .* `semtask logs --daemon`"):
        transport.call("admin.stats.v1", {})
    assert len(fake.requests) == 4


def test_what_counts_as_a_read() -> None:
    changing = {"dev.enqueue.v1", "dev.enqueue_many.v1", "dev.cancel.v1", "dev.retry.v1", "admin.maintenance.v1"}
    changing |= {"queues.pause.v1", "queues.resume.v1", "queues.configure.v1", "apps.reload.v1"}
    changing |= {"admin.start_daemon.v1"}
    assert set(METHODS) == READS | changing


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_errors_of_the_daemon_are_its_own_classes(fake: Fake, transport: Transport, code: int) -> None:
    data = {"kind": "X", "details": {"parameter": "queue"}, "trace_id": "t1", "retry_after_ms": 5}
    fake.script = [failure({"code": code, "message": "no", "data": data})]
    with pytest.raises(errors.BY_CODE[code], match="no") as caught:
        transport.call("admin.stats.v1", {})
    assert type(caught.value) is errors.BY_CODE[code]
    assert (caught.value.details, caught.value.trace_id, caught.value.retry_after_ms) == (
        {"parameter": "queue"},
        "t1",
        5,
    )


@pytest.mark.parametrize(
    ("status", "cls"),
    [(401, errors.Unauthorized), (403, errors.Unauthorized), (429, errors.Throttled), (503, errors.Throttled)],
)
def test_refusals_of_the_guard(fake: Fake, transport: Transport, status: int, cls: type[errors.RpcError]) -> None:
    fake.script = [failure({"code": -32600, "message": "stop"}, status=status, head="Retry-After: 3\r\n")]
    with pytest.raises(cls, match="stop") as caught:
        transport.call("admin.stats.v1", {})
    assert caught.value.retry_after_ms == 3000


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (raw("<html>", status=404), "HTTP status 404"),
        (raw("", head="Transfer-Encoding: chunked\r\n", status=500), "HTTP status 500"),
    ],
)
def test_another_server_is_named_as_such(fake: Fake, transport: Transport, reply: Any, what: str) -> None:
    fake.script = [reply]
    with pytest.raises(errors.DaemonUnavailable, match=what):
        transport.call("admin.stats.v1", {})


def test_something_that_is_not_http(fake: Fake, transport: Transport) -> None:
    def gibberish(connection: socket.socket, request: dict[str, Any]) -> bool:
        connection.sendall(b"SSH-2.0-x\r\n\r\n")
        return True

    fake.script = [gibberish]
    with pytest.raises(errors.DaemonUnavailable, match="no semtask daemon"):
        transport.call("admin.stats.v1", {})


def test_the_time_limit_covers_a_dripping_answer(fake: Fake, transport: Transport) -> None:
    stop = threading.Event()

    def drip(connection: socket.socket, request: dict[str, Any]) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not stop.wait(0.02):
            connection.sendall(b" ")
        return False

    fake.script = [drip, answer("fresh")]
    begin = time.monotonic()
    with pytest.raises(errors.DaemonUnavailable, match=r"within 0\.3 s"):
        transport.call("dev.wait.v1", {}, timeout=0.3)
    stop.set()
    assert time.monotonic() - begin < 3
    assert transport.call("admin.stats.v1", {}) == "fresh"


def test_an_interrupt_leaves_no_half_read_connection(fake: Fake, transport: Transport) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> Any:
        raise Interrupted

    fake.script = [answer("old"), answer("new")]
    transport._receive = interrupt  # type: ignore[method-assign, assignment]
    with pytest.raises(Interrupted):
        transport.call("admin.stats.v1", {})
    del transport._receive
    assert transport.call("admin.stats.v1", {}) == "new"


@pytest.mark.parametrize(("theirs", "told"), [("0.1.99", 0), ("0.2.0", 1), ("1.1.0", 1)])
def test_another_version_is_said_once(fake: Fake, theirs: str, told: int) -> None:
    lines: list[str] = []
    fake.script = [answer(1, version=theirs), answer(1, version=theirs)]
    with Transport(UnixAddress(fake.run_dir), notice=lines.append) as transport:
        transport.call("admin.stats.v1", {})
        transport.call("admin.stats.v1", {})
    assert len(lines) == told
    assert all(theirs in line and "semtask down" in line for line in lines)


def test_what_json_cannot_hold_is_refused_before_it_is_sent(fake: Fake, transport: Transport) -> None:
    for value in (float("nan"), "\udc80", object()):
        with pytest.raises(errors.ValidationError, match="JSON"):
            transport.call("dev.enqueue.v1", {"payload": value})
    assert fake.requests == []


def test_the_kernel_names_the_listener(fake: Fake, transport: Transport) -> None:
    assert transport.peer_pid() == os.getpid()


def test_a_daemon_of_somebody_else_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(errors.Unauthorized, match="not to you"):
        Transport(UnixAddress(fake.run_dir)).connect()
    assert fake.requests == []


def test_a_full_backlog_is_waited_for_and_then_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc.sock"))
        listener.listen(0)
        with Transport(UnixAddress(tmp_path)) as first, Transport(UnixAddress(tmp_path)) as second:
            first.connect(0.2)
            with pytest.raises(errors.DaemonUnavailable, match="accepts no connection"):
                second.connect(0.2)


def test_tcp_sends_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heads: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(65536))
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"result": 7}')

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        with Transport(TcpAddress("127.0.0.1", port, token)) as transport:
            assert transport.call("admin.stats.v1", {}) == 7
        thread.join(10)
    assert b"Authorization: Bearer s3cret\r\n" in heads[0]
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in heads[0]


def test_where_the_daemon_is(tmp_path: Path) -> None:
    settings = load({"SEMANTICA_HOME": str(tmp_path), "HOME": str(tmp_path)})
    assert address_of(settings, env={}) == UnixAddress(tmp_path / "run")
    tcp = TcpAddress("127.0.0.1", 9527, tmp_path / "run" / "token")
    assert address_of(settings, env={"SEMANTICA_RPC_URL": "http://127.0.0.1:9527"}) == tcp
    assert address_of(settings, "http://127.0.0.1:9527", env={"SEMANTICA_RPC_URL": "nonsense"}) == tcp


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://10.0.0.1:1", "127.0.0.1:9527", "http://127.0.0.1", "http://127.0.0.1:x"]
)
def test_addresses_that_are_refused(tmp_path: Path, url: str) -> None:
    settings = load({"SEMANTICA_HOME": str(tmp_path), "HOME": str(tmp_path)})
    with pytest.raises(errors.ConfigError, match=r"http://127\.0\.0\.1:9527"):
        address_of(settings, url)
