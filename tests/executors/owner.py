"""A stand-in for the daemon, to be killed: owns a launcher and runs the commands of its arguments.

python -m tests.executors.owner HOME '[{"argv": [...], "job_id": ..., "grace_ms": ..., "nonce": ...}, ...]'
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.executors.rig import Rig, make_spec, rig


async def _run(r: Rig, options: dict[str, Any]) -> None:
    ended = await r.run(make_spec(options.pop("argv"), **options))
    print("ended", options["job_id"], ended.end_cause.value, flush=True)


async def main() -> None:
    async with rig(Path(sys.argv[1])) as r:
        print("launcher", r.launcher_pid(), flush=True)
        await asyncio.gather(*(_run(r, options) for options in json.loads(sys.argv[2])))
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
