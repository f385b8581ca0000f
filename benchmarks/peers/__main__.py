"""Peers side by side: python -m benchmarks.peers [NAME...] [--rounds 3] [--scale 1.0] [--json]"""

from __future__ import annotations

import argparse
import dataclasses
import json

from benchmarks.peers.install import Unavailable, environment, redis_version
from benchmarks.peers.measure import PEERS, Figures, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(peer.name for peer in PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of jobs")
    parser.add_argument("--json", action="store_true", help="one JSON object per peer and line")
    options = parser.parse_args()
    measure_all(options.names, options.rounds, options.scale, as_json=options.json)


def measure_all(names: list[str], rounds: int, scale: float, *, as_json: bool = False) -> list[Figures]:
    """Print a line for each peer; those that cannot be measured say why."""
    figures = []
    if not as_json:
        print(f"peers (2 worker processes, no results; {_where()}):")
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        try:
            figures.append(row := measure(peer, rounds, scale))
        except Unavailable as error:
            print(
                json.dumps({"name": peer.name, "skipped": str(error)}) if as_json else f"{peer.name}: SKIPPED: {error}"
            )
            continue
        print(json.dumps(dataclasses.asdict(row)) if as_json else line(row), flush=True)
    return figures


def _where() -> str:
    try:
        return f"Redis {redis_version()}, AOF everysec; in {environment()}"
    except Unavailable as error:
        return str(error)


def line(row: Figures) -> str:
    return (
        f"{row.name:12} {row.count:6} jobs: enqueue {row.enqueue:6.0f}/s  drain {row.drain:6.0f}/s"
        f"  sustained {row.sustained:6.0f}/s  start p50 {row.start_p50_ms:.2f} ms, p99 {row.start_p99_ms:.2f} ms"
        f" ({row.starts})"
    )


if __name__ == "__main__":
    main()
