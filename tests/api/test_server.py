"""The contract of JSON-RPC through the real server: batches, notifications, errors, probes, stopping."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semtask.api import http
from semtask.api.access import OWNER
from semtask.api.methods import Caller, Responder
from semtask.errors import Conflict, DatabaseError, StartupError
from semtask.model.state import State
from semtask.protocol.enqueue import Enqueued
from semtask.protocol.methods import METHODS
from semtask.telemetry.events import Events, RequestAnswered
from tests.api.running import JOB_ID, NotingOperations, Peer, Running, running

ENQUEUE: dict[str, Any] = {"job_type": "shell", "payload": {}}
WAIT = {"job_ids": [JOB_ID]}


def call(method: str, params: Any = None, **members: Any) -> bytes:
    params = {} if params is None else params
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **members}).encode()


def test_every_method_reaches_its_operation(server: Running) -> None:
    from tests.api.test_parameters import LEAST

    with server.unix() as peer:
        for method in METHODS.values():
            reply = peer.rpc(method.name, LEAST.get(method.name, {}), request_id=method.name)
            assert (reply.status, reply.json["jsonrpc"], reply.json["id"]) == (200, "2.0", method.name)
            assert "result" in reply.json
    assert server.operations.names() == [m.operation for m in METHODS.values() if m.operation]


def test_a_result_is_the_message_as_json(server: Running) -> None:
    with server.unix() as peer:
        reply = peer.rpc("dev.enqueue.v1", ENQUEUE)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["result"] == {
        "job_id": JOB_ID,
        "state": "QUEUED",
        "queue": "default",
        "generation": None,
        "deduplicated": False,
        "superseded": 0,
    }


def test_notifications_are_executed_and_answered_with_nothing(server: Running) -> None:
    with server.unix() as peer:
        for body in (
            call("admin.stats.v1"),
            call("no.such.method"),
            call("dev.get_job.v1", {"job_id": 7}),
            b"[%s,%s]" % (call("admin.stats.v1"), call("queues.list.v1")),
        ):
            reply = peer.post(body)
            assert (reply.status, reply.body) == (204, b"")
            assert "content-length" not in reply.headers
    assert server.operations.names() == ["stats", "stats", "list_queues"]


def test_a_batch_runs_in_order_and_answers_what_asked_for_an_answer(server: Running) -> None:
    members = [
        call("queues.pause.v1", {"queue": "a"}, id=1),
        call("admin.stats.v1"),
        b"5",
        call("no.such.method", id="x"),
        call("dev.enqueue.v1", {"job_type": 1}, id=None),
        call("dev.wait.v1", WAIT, id=2),
    ]
    with server.unix() as peer:
        reply = peer.post(b"[" + b",".join(members) + b"]")
    assert reply.status == 200
    outcomes = [(r["id"], r["error"]["code"] if "error" in r else 0) for r in reply.json]
    assert outcomes == [(1, 0), (None, -32600), ("x", -32601), (None, 4000), (2, 0)]
    assert server.operations.names() == ["pause_queue", "stats", "wait"]


def test_a_member_of_a_batch_is_done_before_the_next_one_begins(home: Path) -> None:
    with running(home) as server, server.unix() as peer:
        server.hold()
        body = b"[%s,%s]" % (call("dev.enqueue.v1", ENQUEUE, id=1), call("admin.stats.v1", id=2))
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(peer.post(body).json))
        thread.start()
        assert server.operations.entered.wait(20)
        assert server.operations.names() == ["enqueue"]
        server.release()
        thread.join(20)
        assert [answer["id"] for answer in answers[0]] == [1, 2]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"NaN", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1","params":{"a":1e999}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1","params":{"a":"\xff"}}', -32700),
        (b"[" * 100_000 + b"]" * 100_000, -32700),
        (b"[]", -32600),
        (b"[" + b",".join([call("admin.stats.v1", id=1)] * 1001) + b"]", -32600),
        (b'"text"', -32600),
        (call("admin.stats.v2", id=1), -32601),
        (call("enqueue", id=1), -32601),
        (call("__init__", id=1), -32601),
        (call("admin.stats.v1", [1], id=1), -32602),
        (call("admin.stats.v1", "text", id=1), -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1","params":null}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1","params": 5 }', -32602),
    ],
)
def test_errors_of_the_protocol_come_with_http_200(server: Running, body: bytes, code: int) -> None:
    with server.unix() as peer:
        reply = peer.post(body)
        assert (reply.status, reply.error["code"]) == (200, code)
        assert set(reply.error["data"]) == {"kind", "details", "trace_id"}
        assert peer.rpc("admin.stats.v1").status == 200  # the connection goes on
    assert server.operations.names() == ["stats"]


def test_an_unknown_method_is_suggested(server: Running) -> None:
    with server.unix() as peer:
        assert "'dev.enqueue.v1'" in peer.rpc("dev.enqeue.v1").error["message"]


def test_the_engines_errors_reach_the_caller(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(home) as server, server.unix() as peer:
        server.operations.fail = Conflict("too late", details={"state": "DONE"}, retry_after_ms=7)
        error = peer.rpc("dev.cancel.v1", {"job_id": JOB_ID}).error
    data = {"kind": "CONFLICT", "details": {"state": "DONE"}, "trace_id": None, "retry_after_ms": 7}
    assert error == {"code": 4002, "message": "too late", "data": data}
    assert caplog.records == []


@pytest.mark.parametrize(("fault", "code"), [(ZeroDivisionError("inside"), 5000), (DatabaseError("disk"), 5001)])
def test_the_daemons_own_faults_are_logged_under_a_trace_id(
    home: Path, caplog: pytest.LogCaptureFixture, fault: Exception, code: int
) -> None:
    with running(home) as server, server.unix() as peer:
        server.operations.fail = fault
        reply = peer.rpc("dev.enqueue.v1", {**ENQUEUE, "payload": {"password": "canary-payload"}})
        assert (reply.status, reply.error["code"]) == (200, code)
        assert b"inside" not in reply.body
        assert b"Traceback" not in reply.body
        server.operations.fail = None
        assert "result" in peer.rpc("dev.enqueue.v1", ENQUEUE).json
    (record,) = caplog.records
    assert record.name == "semtask.api"
    trace_id = reply.error["data"]["trace_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert record.__dict__["trace_id"] == trace_id
    assert trace_id in record.getMessage()
    assert "in _note" in caplog.text
    assert "canary-payload" not in caplog.text


def test_a_result_that_cannot_be_written_is_an_internal_error(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotingOperations, "_enqueued", staticmethod(lambda: "\ud800"))
    with running(home) as server, server.unix() as peer:
        assert peer.rpc("dev.enqueue.v1", ENQUEUE).error["code"] == 5000
    assert len(caplog.records) == 1


def test_neither_token_nor_payload_is_logged(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(home, tcp=True, rpc_port=0) as server:
        token = server.token
        guest = (f"Host: localhost:{server.port}", "Content-Type: application/json")
        for credentials in (f"Bearer {token}", f"Bearer {token}x", f"Basic {token}", token):
            with server.tcp() as peer:
                lines = [*guest, f"Authorization: {credentials}"]
                body = call("dev.enqueue.v1", {**ENQUEUE, "payload": {"key": "canary-payload"}, "tag": 5}, id=1)
                lines.append(f"Content-Length: {len(body)}")
                peer.send("\r\n".join(["POST /rpc HTTP/1.1", *lines, "", ""]).encode() + body)
                reply = peer.reply()
                assert token.encode() not in reply.body
        with server.unix() as peer:
            peer.post(b'{"canary-payload')
            peer.send(b"canary-payload\r\n\r\n")
            peer.reply()
        assert token not in repr(vars(server.server))
    assert token not in caplog.text
    assert "canary-payload" not in caplog.text


# --- probes ----------------------------------------------------------------------------------------------------------


def get(peer: Peer, path: str) -> Any:
    peer.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return peer.reply()


def test_probes(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(home) as server, server.unix() as peer:
        assert get(peer, "/healthz").json == {"status": "ok"}
        assert get(peer, "/readyz").json == {"status": "ready"}
        server.ready_error = DatabaseError("the disk is full")
        reply = get(peer, "/readyz")
        assert (reply.status, reply.json["reason"]) == (503, "the disk is full")
        server.ready_error = ZeroDivisionError("secret detail")
        reply = get(peer, "/readyz")
        assert reply.status == 503
        assert b"secret detail" not in reply.body
        assert "ZeroDivisionError" in caplog.text
        assert get(peer, "/healthz").status == 200


def test_metrics(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(home) as server, server.unix() as peer:
        reply = get(peer, "/metrics?name=x")
        assert (reply.status, reply.body) == (200, b"semantica_test 1\n")
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        server.ready_error = DatabaseError("the disk is gone")
        reply = get(peer, "/metrics")
        assert (reply.status, reply.json["reason"]) == (503, "the disk is gone")
        server.ready_error = ZeroDivisionError("secret detail")
        reply = get(peer, "/metrics")
        assert reply.status == 503
        assert b"secret detail" not in reply.body
        assert "ZeroDivisionError" in caplog.text


def test_every_request_is_told_of_by_method_and_code(home: Path) -> None:
    told: list[RequestAnswered] = []
    with running(home) as server, server.unix() as peer:
        server.events.attach(RequestAnswered, told.append)
        peer.rpc("admin.stats.v1")
        peer.rpc("admin.stats.v1", {"canary": 1})
        peer.rpc("canary.method")
        peer.post(b"{")
        peer.post(b"[1]")
        peer.post(call("admin.stats.v1"))  # a notification
        server.operations.fail = ZeroDivisionError("inside")
        peer.rpc("admin.stats.v1")
    method = "admin.stats.v1"
    answers = [(method, 0), (method, 4000), (None, -32601), (None, -32700), (None, -32600), (method, 0), (method, 5000)]
    assert [(event.method, event.code) for event in told] == answers
    assert all(0 <= event.seconds < 10 for event in told)


# --- stopping --------------------------------------------------------------------------------------------------------


def test_while_draining_only_new_work_is_refused(home: Path) -> None:
    from tests.api.test_parameters import LEAST

    with running(home) as server, server.unix() as peer:
        server.call(lambda: server.server.drain(7))
        for method in METHODS.values():
            reply = peer.rpc(method.name, LEAST.get(method.name, {}))
            if method.name in {"dev.enqueue.v1", "dev.enqueue_many.v1", "dev.retry.v1"}:
                assert (reply.status, reply.headers["retry-after"]) == (503, "7")
                assert (reply.error["code"], reply.error["data"]["retry_after_ms"]) == (4003, 7000)
                assert reply.json["id"] == 1
            else:
                assert (reply.status, "result" in reply.json) == (200, True)
        assert not {"enqueue", "enqueue_many"} & set(server.operations.names())
        assert get(peer, "/healthz").status == 200
        assert get(peer, "/readyz").status == 503


def test_a_batch_and_a_notification_while_draining(home: Path) -> None:
    with running(home) as server, server.unix() as peer:
        server.call(lambda: server.server.drain(7))
        mixed = peer.post(b"[%s,%s]" % (call("dev.enqueue.v1", ENQUEUE, id=1), call("admin.stats.v1", id=2)))
        assert mixed.status == 200
        assert mixed.json[0]["error"]["code"] == 4003
        assert "result" in mixed.json[1]
        assert peer.post(b"[%s]" % call("dev.enqueue.v1", ENQUEUE, id=1)).status == 503
        assert peer.post(call("dev.enqueue.v1", ENQUEUE)).status == 503


def test_close_lets_a_change_end_and_gives_up_a_wait(home: Path) -> None:
    with running(home) as server:
        server.hold()
        waiter, changer, idle = server.unix(), server.unix(), server.unix()
        with waiter, changer, idle:
            waiter.send(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n")
            body = call("dev.wait.v1", WAIT, id=1)
            waiter.send(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            assert server.operations.entered.wait(20)
            server.operations.entered.clear()
            body = call("dev.enqueue.v1", ENQUEUE, id=2)
            changer.send(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n")
            changer.send(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            assert server.operations.entered.wait(20)
            closing = asyncio.run_coroutine_threadsafe(server.server.close(), server.loop)
            given_up = waiter.reply()
            assert (given_up.status, given_up.error["code"]) == (200, 4003)
            assert idle.closed()
            assert not closing.done()
            server.release()
            assert "result" in changer.reply().json
            closing.result(20)
            assert server.operations.cancelled == ["wait"]
            assert not server.settings.socket.exists()
            with pytest.raises(FileNotFoundError):
                server.unix()


def test_close_sends_what_was_answered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the client has not taken yet: this answer is larger than the buffers of the socket."""
    big = Enqueued(job_id="x" * 8_000_000, state=State.QUEUED, queue="default")
    monkeypatch.setattr(NotingOperations, "_enqueued", staticmethod(lambda: big))
    with running(home) as server, server.unix() as peer:
        peer.send(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n")
        body = call("dev.enqueue.v1", ENQUEUE, id=1)
        peer.send(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert server.operations.entered.wait(20)
        closing = asyncio.run_coroutine_threadsafe(server.server.close(), server.loop)
        assert len(peer.reply().json["result"]["job_id"]) == 8_000_000
        closing.result(20)


def test_close_does_not_wait_for_ever(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CLOSE_GRACE_S", 0.1)
    with running(home) as server, server.unix() as peer:
        server.hold()
        body = call("dev.enqueue.v1", ENQUEUE, id=1)
        peer.send(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n")
        peer.send(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert server.operations.entered.wait(20)
        server.run(server.server.close())
        assert peer.closed()
        assert server.operations.cancelled == ["enqueue"]


@pytest.mark.parametrize("descriptors", [resource.RLIM_INFINITY, 64])
def test_the_cap_of_connections_leaves_descriptors_for_the_rest(
    home: Path, monkeypatch: pytest.MonkeyPatch, descriptors: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (descriptors, descriptors))
    with running(home) as server:
        peers = [server.unix() for _ in range(40)]
        assert [peer.rpc("admin.stats.v1").status for peer in peers[-30:]] == [200] * 30
        if descriptors == 64:
            assert peers[0].closed()
        else:
            assert peers[0].rpc("admin.stats.v1").status == 200
        for peer in peers:
            peer.sock.close()


def test_a_server_that_cannot_start_leaves_nothing(home: Path) -> None:
    home.mkdir(0o700)
    (home / "run").mkdir(0o700)
    (home / "run" / "token").symlink_to(home / "elsewhere")
    with pytest.raises(StartupError, match="token"):
        with running(home, tcp=True, rpc_port=0):
            pytest.fail("it started")
    assert not (home / "run" / "rpc.sock").exists()


# --- any bytes -------------------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
names = sorted({field.encode_name for m in METHODS.values() for field in msgspec.structs.fields(m.params)})


@given(
    st.sampled_from(sorted(METHODS)) | st.text(max_size=8),
    anything | st.dictionaries(st.sampled_from(names), anything, max_size=4),
    st.none() | st.integers() | st.text(max_size=3),
)
def test_no_request_makes_the_responder_fail(method: str, params: Any, request_id: Any) -> None:
    responder = Responder(NotingOperations(), version="1", events=Events())
    answer = asyncio.run(responder.answer(call(method, params, id=request_id), Caller(), OWNER))
    assert answer.body is not None
    response = json.loads(answer.body)
    assert response["id"] == request_id
    assert "result" in response or response["error"]["code"] in {-32601, -32602, 4000}
