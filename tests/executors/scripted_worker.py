"""A worker that does what no real one should. The name of its app says what."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from semtask.protocol.frames import (
    PROTOCOL,
    Ended,
    Failed,
    Frames,
    Hello,
    Run,
    Setup,
    TaskInfo,
    ToWorker,
    encode,
    to_worker,
)

channel = socket.socket(fileno=3)
incoming = Frames()
rest: list[ToWorker] = []


def receive() -> ToWorker:
    while True:
        for body in incoming.bodies():
            message = to_worker(body)
            rest.append(message)
        if rest:
            return rest.pop(0)
        data = channel.recv(65536)
        if not data:
            if setup.app == "deaf":
                time.sleep(300)
            sys.exit(0)
        incoming.feed(data)


first = receive()
assert isinstance(first, Setup)
setup = first


def hello(protocol: int = PROTOCOL, version: str = "1.2.3") -> None:
    tasks = [TaskInfo(name="task", is_async=False, parameters={}), TaskInfo(name="atask", is_async=True, parameters={})]
    channel.sendall(encode(Hello(protocol=protocol, version=version, python="3.11", pid=os.getpid(), tasks=tasks)))


def calls() -> list[tuple[str, int]]:
    message = receive()
    while not isinstance(message, Run):
        message = receive()
    return [(call.job_id, call.claim_no) for call in message.calls]


def done(key: tuple[str, int], *, leftovers: bool = False, recycle: str | None = None) -> bytes:
    return encode(
        Ended(job_id=key[0], claim_no=key[1], end="done", ran_us=5, result="1", leftovers=leftovers, recycle=recycle)
    )


def take_token() -> None:
    while True:
        try:
            os.eventfd_read(4)
            return
        except BlockingIOError:
            time.sleep(0.001)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def play(behaviour: str) -> None:
    match behaviour:
        case "silent":
            print("still thinking", flush=True)
            time.sleep(300)
        case "other-protocol":
            hello(protocol=99, version="0.0.9")
            time.sleep(300)
        case "garbage":
            channel.sendall(b"\xff" * 100)
            time.sleep(300)
        case "failed":
            channel.sendall(encode(Failed(error="ImportError: nothing works", traceback="Traceback: here")))
            sys.exit(1)
        case "dies":
            print("no luck today", flush=True)
            os._exit(3)
        case "aborts":
            hello()
            os._exit(4)
    hello()
    keys = calls()
    match behaviour:
        case "garbage-later":
            take_token()
            channel.sendall(done(keys[0])[:4] + b"\xc1" * 200)
        case "result-then-death":
            take_token()
            channel.sendall(done(keys[0]))
            die()
        case "torn":
            take_token()
            channel.sendall(done(keys[0])[:-3])
            die()
        case "unbegun":
            die()
        case "closes":
            take_token()
            channel.close()
        case "steals":
            time.sleep(0.3)  # until they were taken back
            channel.sendall(done(keys[1]))
        case "ends-others":
            take_token()
            channel.sendall(done(("01890a5d-ac96-774b-bcce-b302099a80fe", 9)))
        case "leftovers":
            take_token()
            child = subprocess.Popen(["sleep", "300"], start_new_session=True)
            with open("child", "w") as file:
                file.write(str(child.pid))
            channel.sendall(done(keys[0], leftovers=True))
        case "recycles":
            take_token()
            channel.sendall(done(keys[0], recycle="enough"))
            receive()
        case "deaf":
            take_token()
            channel.sendall(done(keys[0]))
            receive()
        case "mark":
            # Both run; the second one's code brings it down.
            with open(setup.mark_path, "r+b") as file:
                file.write((2).to_bytes(8, "little"))
            die()
    time.sleep(300)


play(setup.app)
