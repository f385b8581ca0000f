"""All benchmarks, one after the other: python -m benchmarks"""

from __future__ import annotations

from benchmarks import commands, daemon, schedule, startup, store, store_policies

for module in (startup, commands, store, store_policies, schedule, daemon):
    print(f"\n== {module.__name__.rpartition('.')[2]}: {(module.__doc__ or '').strip().splitlines()[0]}")
    module.main()
