"""A stand-in for the daemon, to be killed: runs tasks of an app and says what it did.

python -m tests.executors.task_owner HOME CODE '[["task", {"argument": ...}], ...]'
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.executors.task_rig import task_rig


async def main() -> None:
    async with task_rig(Path(sys.argv[1])) as r:
        await r.use(r.write_app(sys.argv[2]))
        jobs = [r.job(task, **arguments) for task, arguments in json.loads(sys.argv[3])]
        worker = ""
        if jobs:
            worker = (await r.runs(*jobs)).nonce
        processes = {w.worker: w.pid for w in r.executor.workers() if w.worker == worker or not worker}
        assert r.spawner._process is not None
        print(json.dumps([worker or next(iter(processes)), r.spawner._process.pid]), flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
