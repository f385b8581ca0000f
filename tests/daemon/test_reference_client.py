"""What the Python client of the reference sends, byte for byte the same methods and parameters, and what it reads.

Its own code is not here. It posts JSON to the root of the port by httpx, takes any HTTP status from 400 on for a lost
connection, and reads the members named below.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.rig import Daemon, eventually, stop_for_certain
from tests.daemon.test_metrics import free_port


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ReferenceClient:
    """`target` is what stands in the request line: a whole URL for who takes the daemon for a proxy."""

    def __init__(self, port: int, *, target: str = "/", **headers: str) -> None:
        self.port = port
        self._target = target
        self._headers = headers
        self._id = 0

    def post(self, body: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Accept": "*/*",
            "Accept-Encoding": "gzip, deflate",
            "Connection": "keep-alive",
            "User-Agent": "python-httpx/0.28.1",
            "Content-Type": "application/json",
            **self._headers,
        }
        connection.request("POST", self._target, json.dumps(body, separators=(",", ":")), headers)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())
        connection.close()
        return answer

    def request(self, method: str, params: Any) -> Any:
        self._id += 1
        status, data = self.post({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params})
        assert status < 400, (status, data)
        if "error" in data:
            raise RpcError(data["error"]["code"], data["error"]["message"])
        return data["result"]

    def enqueue(self, payload: Any, subject_key: str, priority: int = 0) -> tuple[str, str, str]:
        params = {"job_type": "INDEX_FILE", "queue": "code_intel", "subject_key": subject_key}
        result = self.request("dev.enqueue.v1", {**params, "payload": payload, "priority": priority})
        return result["job_id"], result["state"], result["queue"]

    def cancel(self, job_id: str) -> bool:
        result = self.request("dev.cancel.v1", {"job_id": job_id})
        assert result["job_id"] == job_id
        return bool(result["cancelled"])

    def tail(self, job_id: str, lines: int = 50) -> list[str]:
        result = self.request("logs.tail.v1", {"job_id": job_id, "lines": lines})
        assert result["job_id"] == job_id
        assert "log_path" in result
        return list(result["lines"])


@contextmanager
def serving(home: Path, **env: str) -> Iterator[tuple[Daemon, int]]:
    home.mkdir(mode=0o700)
    port = free_port()
    daemon = Daemon(home, SEMANTICA_TCP="on", SEMANTICA_RPC_PORT=str(port), **env)
    try:
        yield daemon.start(), port
    finally:
        stop_for_certain(daemon)


def test_it_enqueues_cancels_and_reads_without_an_error(tmp_path: Path) -> None:
    settings = {"SEMANTICA_LOG_FORMAT": "pretty", "SEMANTICA_CPU_THROTTLE_THRESHOLD": "90.0"}
    with serving(tmp_path / "home", SEMANTICA_TCP_AUTH="off", **settings) as (daemon, port):
        client = ReferenceClient(port)
        # Its look whether a daemon runs.
        assert client.post({"jsonrpc": "2.0", "id": 1, "method": "admin.stats.v1", "params": {}})[0] == 200
        for number, payload in enumerate(({"path": "src/main.py"}, ["src"], "src/main.py", 5, 0.5, True, None)):
            job_id, state, queue = client.enqueue(payload, f"src/{number}", priority=5)
            assert (state, queue) == ("QUEUED", "code_intel")
            assert daemon.rpc("dev.get_job.v1", job_id=job_id, include=["payload"])["payload"] == payload
            assert client.tail(job_id) == []
            assert client.cancel(job_id)
            assert not client.cancel(job_id)
        first, *_ = client.enqueue({"path": "a"}, "same")
        second, *_ = client.enqueue({"path": "b"}, "same")
        assert daemon.job(first)["state"] == "SUPERSEDED"
        assert client.cancel(second)
        ran, *_ = client.enqueue({"command": "sh", "args": ["-c", "echo one; echo two"]}, "build")
        eventually(lambda: daemon.job(ran)["state"] == "DONE")
        assert (client.tail(ran), client.tail(ran, 1)) == (["one", "two"], ["two"])
        assert not client.cancel(ran)
        for call in (client.cancel, client.tail):
            with pytest.raises(RpcError) as missing:
                call("01a207a1-0000-7000-8000-000000000000")
            assert missing.value.code == 4001
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


def test_it_has_a_token_by_its_url_or_by_its_proxy(tmp_path: Path) -> None:
    """`http://any:TOKEN@127.0.0.1:9527` as its url, or in HTTP_PROXY, which its HTTP client honours."""
    with serving(tmp_path / "home") as (daemon, port):
        token = (daemon.home / "run" / "token").read_text().strip()
        basic = "Basic " + base64.b64encode(f"semtask:{token}".encode()).decode()
        wrong = "Basic " + base64.b64encode(b"semtask:wrong").decode()
        proxied = f"http://127.0.0.1:{port}/"
        for client in (
            ReferenceClient(port, Authorization=basic),
            ReferenceClient(port, target=proxied, **{"Proxy-Authorization": basic}),
            ReferenceClient(port, target=proxied.rstrip("/"), **{"Proxy-Authorization": basic}),
        ):
            job_id, *_ = client.enqueue({"path": "a"}, "a")
            assert client.cancel(job_id)
        stats = {"jsonrpc": "2.0", "id": 1, "method": "admin.stats.v1", "params": {}}
        for refused, status in (
            (ReferenceClient(port), 401),
            (ReferenceClient(port, Authorization=wrong), 401),
            (ReferenceClient(port, target=proxied), 401),
            (ReferenceClient(port, target=proxied, **{"Proxy-Authorization": wrong}), 401),
            (ReferenceClient(port, **{"Proxy-Authorization": basic}), 401),
            (ReferenceClient(port, target="http://example.com/", **{"Proxy-Authorization": basic}), 403),
            (ReferenceClient(port, target=f"http://127.0.0.1:{port}@example.com/", Authorization=basic), 403),
            (ReferenceClient(port, target=proxied, Host="example.com", **{"Proxy-Authorization": basic}), 403),
            (ReferenceClient(port, target=proxied, Origin="http://example.com", Authorization=basic), 403),
        ):
            assert refused.post(stats)[0] == status
