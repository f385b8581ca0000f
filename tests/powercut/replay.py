"""Replays a trace to many places, cuts the power there, and looks at what is left."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from tests.powercut import trace
from tests.powercut.disk import POLICIES, cuts, write_image
from tests.powercut.told import facts, jobs_of, look
from tests.powercut.trace import Kind, Op


@dataclass
class Verdict:
    images: int = 0
    facts: int = 0  # that were compared, over all images
    corrupt: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # of acknowledged jobs, ends, cancellations, settings
    kinds: Counter[str] = field(default_factory=Counter)  # of the facts that the clients were told

    def __str__(self) -> str:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return (
            f"{self.images} images replayed (told: {told}; {self.facts} facts compared): "
            f"{len(self.corrupt)} corrupt, {len(self.lost)} with something lost that was acknowledged"
        )


def replay(recorded: Path, images: int, seed: int, *, sick: bool = False) -> Verdict:
    """Images are spread over the whole trace, each with the next policy; every second place is just after an answer.

    `sick`: they are spread over what followed the first sync that failed.
    """
    dice = random.Random(seed)
    ops = trace.read(recorded)
    first = next(place for place, op in enumerate(ops) if op.kind is Kind.FAILED_SYNC) if sick else 0
    told = facts(ops)
    order = final_order(ops, recorded.parent / "final")
    verdict = Verdict(kinds=Counter(fact.kind for fact in told))
    folder = recorded.parent / "image"
    for number, (place, disk) in enumerate(cuts(ops, _places(ops, first, images, dice))):
        policy = POLICIES[number % len(POLICIES)]
        write_image(folder, disk.cut(policy, dice))
        known = [fact for fact in told if fact.place < place]
        found = look(folder / "meta.db", known, order)
        verdict.images += 1
        verdict.facts += len(known)
        if found.corrupt:
            verdict.corrupt.append(f"cut at {place} of {len(ops)}, {policy}: {found.corrupt}")
        elif found.lost:
            verdict.lost.append(f"cut at {place} of {len(ops)}, {policy}: {len(found.lost)} lost, {found.lost[0]}")
        shutil.rmtree(folder)
    return verdict


def final_order(ops: list[Op], folder: Path) -> list[str]:
    """The ids of all jobs of the trace, oldest first."""
    [(_, disk)] = cuts(ops, [len(ops)])
    write_image(folder, disk.cut("keep", random.Random(0)))
    db = apsw.Connection(str(folder / "meta.db"))
    try:
        return list(jobs_of(db))
    finally:
        db.close()
        shutil.rmtree(folder)


def _places(ops: list[Op], first: int, images: int, dice: random.Random) -> list[int]:
    """Any place of the trace, and the moments when a client has just been told something."""
    answers = [place + 1 for place, op in enumerate(ops) if op.kind is Kind.ANSWER and place >= first]
    half = min(images // 2, len(answers))
    return sorted(dice.sample(answers, half) + dice.choices(range(first, len(ops) + 1), k=images - half))
