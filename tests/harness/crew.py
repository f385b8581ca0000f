"""Runs the cases of kill points, several grounds side by side: most of the time of a case is spent waiting."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from tests.daemon.rig import stop_for_certain
from tests.harness.ground import Ground
from tests.harness.points import scenes
from tests.harness.scenes import SCENES

_TRIES = 4  # a scene may pass a point by: what is recalled or told first is a matter of time
_CALLS = "both"  # the scene for the calls of shims


class Case(NamedTuple):
    """Kill `victim` at `point`, and, if `second` is given, the process that comes to that point after it.

    `otherwise` are taken one after the other in the place of `second` if the recovery does not come to that point.
    `may_miss`: how many such points there are differs from run to run.
    """

    point: str
    victim: Literal["self", "daemon"] = "self"
    second: str | None = None
    otherwise: tuple[str, ...] = ()
    may_miss: bool = False

    @property
    def killed(self) -> str:
        return self.point.partition(".")[0] if self.victim == "self" else "daemon"


class Crew:
    """`failures` tells what went wrong, by case; `kills` and `jobs` count what happened."""

    def __init__(self, folder: Path, cases: Sequence[Case], size: int) -> None:
        self.kills: Counter[str] = Counter()
        self.seconds = 0  # cases in which the recovery was killed, too
        self.jobs = 0
        self.met: set[str] = set()  # the points where somebody was killed
        self.failures: list[str] = []
        self._scenes = scenes()
        self._cases: SimpleQueue[Case] = SimpleQueue()
        for case in cases:
            self._cases.put(case)
        self._threads = [
            threading.Thread(target=self._work, args=(folder / f"ground{number}",), name=f"ground {number}")
            for number in range(size)
        ]
        self._counting = threading.Lock()

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _work(self, folder: Path) -> None:
        number = 0
        while True:
            ground = Ground(folder / str(number))
            try:
                ground.revive()
                while True:
                    case = self._cases.get_nowait()
                    number += 1
                    if not self._ran(ground, case, f"n{number}"):
                        break  # the next one begins in a new home
            except Empty:
                return
            except Exception as error:
                self._fail(f"{type(error).__name__} in {ground.folder}: {error}")
                return
            finally:
                stop_for_certain(ground.daemon)

    def _ran(self, ground: Ground, case: Case, name: str) -> bool:
        try:
            wrong = self._run(ground, case, name)
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}", ground.daemon.stderr()[-2000:]]
        if wrong:
            self._fail(f"{case} in {ground.folder}: {wrong}")
        return not wrong

    def _fail(self, what: str) -> None:
        with self._counting:
            self.failures.append(what)

    def _run(self, ground: Ground, case: Case, name: str) -> list[str]:
        wrong = self._kill(ground, case, name)
        for number, other in enumerate(case.otherwise):
            if wrong or case.second is None or _died_again(ground, case):
                break
            # It was killed at the point before: that the scene passes it by this time is no failure.
            case = case._replace(second=other, may_miss=True)
            wrong = self._kill(ground, case, f"{name}-other{number}")
        with self._counting:
            self.seconds += _died_again(ground, case)
        return wrong

    def _kill(self, ground: Ground, case: Case, name: str) -> list[str]:
        plan = ground.plan
        plan.disarm()
        plan.arm(case.point, case.victim, case.second or "")
        for attempt in range(_TRIES):
            ground.clear()
            SCENES[self._scenes.get(case.point, _CALLS)](ground, f"{name}-{attempt}")
            wrong = ground.findings(ground.settle())
            with self._counting:
                self.jobs += len(ground.jobs)
            if wrong:
                return wrong
            if plan.met(case.point):
                break
        else:
            return [] if case.may_miss else ["the point was not reached"]
        with self._counting:
            self.met.add(case.point)
            self.kills[case.killed] += 1
            if case.second is not None and _died_again(ground, case):
                self.kills[case.second.partition(".")[0]] += 1
        return []


def _died_again(ground: Ground, case: Case) -> bool:
    return case.second is not None and ground.plan.met(case.second) > (case.second == case.point)
