"""The task of the model of test_daemon.py; like its commands, it bears witness in a file."""

from __future__ import annotations

import time

from semtask import Semantica, current_job

app = Semantica(autostart=False)


@app.task
def act(history: str, seconds: float, fails: bool) -> None:
    job_id = current_job().job_id
    _note(history, f"start {job_id}")
    time.sleep(seconds)
    _note(history, f"end {job_id}")
    if fails:
        raise OSError("this failure is planned")


def _note(history: str, line: str) -> None:
    with open(history, "a") as file:  # one short append is atomic
        file.write(f"{line}\n")
