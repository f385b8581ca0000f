"""Benchmarks, one after the other: python -m benchmarks [NAME...]"""

from __future__ import annotations

import sys

from benchmarks import commands, daemon, output, recovery, schedule, startup, stopping, store, store_policies, tasks

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (startup, commands, output, store, store_policies, schedule, daemon, tasks, recovery, stopping)
}


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in MODULES]:
        sys.exit(f"benchmarks: there is no {' or '.join(unknown)}; there are {', '.join(MODULES)}")
    for name in names or MODULES:
        module = MODULES[name]
        print(f"\n== {name}: {(module.__doc__ or '').strip().splitlines()[0]}", flush=True)
        sys.argv[1:] = []  # some take options of their own when they run alone
        module.main()


main(sys.argv[1:])
