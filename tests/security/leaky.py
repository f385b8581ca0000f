"""An app that does with its argument what should not be done with a secret."""

from __future__ import annotations

from semtask import Semantica, current_job

app = Semantica()


@app.task(queue="leaky")
def leak(secret: str, number: int = 0) -> str:
    current_job().log.info("using %s", secret)
    if number >= 0:
        raise ValueError(f"cannot log in with {secret}")
    return secret
