"""The throttle: the rule on its own, then its watch with a probe and a clock of the test's."""

from __future__ import annotations

import asyncio
from time import thread_time

import pytest

from semtask.engine import throttle as module
from semtask.engine.throttle import LoadWatch, Throttle, cpu_limit
from semtask.host.probe import Load, Smoothed, SystemProbe
from tests.engine.clock import FakeClock


def judged(loads: list[tuple[float, float]], throttle: Throttle | None = None) -> list[str]:
    """The phases after (at, cpu) each, for a threshold of 90 %, sustained for the 3 s of the default."""
    throttle = throttle or Throttle(cpu_limit(90))
    phases = []
    for at, cpu in loads:
        throttle.observe(Load(cpu, 50), at)
        phases.append(throttle.phase.name)
    return phases


def test_nothing_goes_before_the_first_look_and_a_calm_one_lets_it_go() -> None:
    throttle = Throttle(cpu_limit(90))
    assert throttle.reason == "the load of the machine is being measured"
    assert judged([(0, 20)], throttle) == ["CALM"]
    assert throttle.reason is None


def test_a_machine_that_is_busy_at_the_first_look_is_not_disturbed_until_the_case_is_clear() -> None:
    assert judged([(0, 95), (1, 95), (2, 89)]) == ["UNKNOWN", "UNKNOWN", "CALM"]
    assert judged([(0, 95), (1, 95), (2, 95), (3, 95)]) == ["UNKNOWN", "UNKNOWN", "UNKNOWN", "BUSY"]


def test_only_a_sustained_load_counts() -> None:
    calm = [(0.0, 10.0)]
    assert judged([*calm, (1, 100), (2, 100), (3, 100), (3.9, 100)])[-1] == "CALM"
    assert judged([*calm, (1, 100), (2, 100), (3, 100), (4, 100)])[-1] == "BUSY"
    assert judged([*calm, (1, 100), (3.5, 89), (4, 100), (6.9, 100)])[-1] == "CALM"  # interrupted: counted anew


def test_it_ends_ten_points_below_and_only_after_a_sustained_calm() -> None:
    busy = [(0.0, 95.0), (3.0, 95.0)]
    assert judged([*busy, (4, 85), (20, 81), (30, 80)])[-1] == "BUSY"  # between the two limits nothing changes
    assert judged([*busy, (4, 79), (6.9, 79)])[-1] == "BUSY"
    assert judged([*busy, (4, 79), (5, 80), (6, 79), (8.9, 79)])[-1] == "BUSY"
    assert judged([*busy, (4, 79), (7, 79)])[-1] == "CALM"


def test_a_threshold_is_reached_not_only_passed_and_every_throttle_can_end() -> None:
    assert judged([(0, 100), (3, 100)], Throttle(cpu_limit(100), sustained_s=3))[-1] == "BUSY"
    for threshold in range(1, 101):
        throttle = Throttle(cpu_limit(threshold), sustained_s=1)
        assert judged([(0, 100), (1, 100), (2, 0), (3, 0)], throttle)[1::2] == ["BUSY", "CALM"], threshold


def test_memory_counts_as_well_and_both_must_be_calm() -> None:
    throttle = Throttle(cpu_limit(90), sustained_s=1)
    for at, load in enumerate([Load(5, 95), Load(5, 96)]):
        throttle.observe(load, at)
    assert throttle.reason == "the machine is busy: memory 96 %, until below 90 %"
    throttle.observe(Load(85, 80), 2)
    assert throttle.reason == "the machine is busy: CPU 85 %, until below 80 %"
    throttle.observe(Load(70, 80), 3)
    assert throttle.reason == "the machine was busy until a moment ago"
    throttle.observe(Load(70, 80), 4)
    assert throttle.reason is None


def test_the_average_forgets_by_time() -> None:
    slow, fast = Smoothed(1.0), Smoothed(1.0)
    for average, steps in ((slow, 2), (fast, 20)):
        average.add(0, 1)
        for _ in range(steps):
            average.add(100, 2 / steps)
    assert slow.value == pytest.approx(fast.value) == pytest.approx(86.47, abs=0.01)
    slow.forget()
    slow.add(30, 0.25)
    assert slow.value == 30


def test_the_real_probe_sees_a_load_that_is_made_here() -> None:
    now = [0.0]
    probe = SystemProbe(lambda: now[0])
    end = thread_time() + 0.3
    while thread_time() < end:
        pass
    now[0] = 0.3
    load = probe.sample()
    assert 5 < load.cpu <= 100
    assert 0 < load.memory < 100


class Machine:
    """The probe of a machine whose load the test sets, and all that the watch tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.cpu: float | OSError = 10.0
        self.looks = 0
        self.running = 0
        self.told: list[str | None] = []
        self.counted: list[tuple[str, int]] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        monkeypatch.setattr("asyncio.sleep", self._sleep)
        self.watch = LoadWatch(
            self,
            Throttle(cpu_limit(90), sustained_s=3),
            self.clock,
            apply=self.told.append,
            running=lambda: self.running,
            count=lambda name, by: self.counted.append((name, by)),
        )

    def active(self) -> bool:
        return self.watch.active

    def last_load(self) -> Load | None:
        return self.watch.load

    def restart(self) -> None:
        self.sample()

    def sample(self) -> Load:
        self.looks += 1
        if isinstance(self.cpu, OSError):
            raise self.cpu
        return Load(self.cpu, 40)

    async def _sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.clock.seconds + seconds, future))
        await future

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.seconds + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, sleeper = self._sleepers.pop(0)
            self.clock.advance(at - self.clock.seconds)
            sleeper.set_result(None)
            await self._settle()
        self.clock.advance(end - self.clock.seconds)

    async def _settle(self) -> None:
        for _ in range(5):
            await self._turn()

    async def _turn(self) -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await future


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_background_work_waits_for_a_first_look_only_after_a_quiet_time(machine: Machine) -> None:
    async def scenario() -> None:
        machine.watch.needed()
        assert machine.told == ["the load of the machine is being measured"]
        await machine.pass_time(0.3)
        assert machine.told[-1] is None
        told = len(machine.told)
        machine.watch.needed()
        assert len(machine.told) == told
        await machine.watch.stop()

    asyncio.run(scenario())


def test_an_idle_daemon_sleeps(machine: Machine) -> None:
    async def scenario() -> None:
        machine.watch.needed()
        machine.running = 1
        await machine.pass_time(100)
        assert machine.last_load() == Load(10, 40)
        machine.running = 0
        await machine.pass_time(module.LINGER_S + 1)
        looks = machine.looks
        await machine.pass_time(3600)
        assert machine.looks == looks  # nothing in an hour
        assert machine.last_load() is None
        machine.watch.needed()
        await machine.pass_time(5)
        assert machine.looks > looks
        assert machine.last_load() is not None
        await machine.watch.stop()

    asyncio.run(scenario())


def test_an_activation_is_counted_once_shown_and_watched_to_its_end(machine: Machine) -> None:
    async def scenario() -> None:
        machine.watch.needed()
        await machine.pass_time(1)
        machine.cpu = 97.0
        await machine.pass_time(5)
        assert machine.active()
        assert machine.watch.reason == machine.told[-1] == "the machine is busy: CPU 97 %, until below 80 %"
        assert machine.watch.since is not None
        assert machine.clock.now_ms() - 3000 <= machine.watch.since <= machine.clock.now_ms()
        await machine.pass_time(10 * module.LINGER_S)  # nothing runs, and work waits: it must not be forgotten
        assert machine.active()
        machine.cpu = 20.0
        await machine.pass_time(5)
        assert not machine.active()
        assert [machine.watch.reason, machine.watch.since, machine.told[-1]] == [None] * 3
        assert machine.counted == [("system.cpu_throttle_events", 1)]
        await machine.watch.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("before", [None, 97.0], ids=["from the start", "while busy"])
def test_where_the_load_cannot_be_seen_work_goes_on(machine: Machine, before: float | None) -> None:
    async def scenario() -> None:
        machine.cpu = OSError(24, "no descriptor left")
        if before:
            machine.cpu = before
        machine.watch.needed()
        await machine.pass_time(5)
        machine.cpu = OSError(24, "no descriptor left")
        await machine.pass_time(1)
        assert machine.told[-1] is None
        assert not machine.active()
        machine.cpu = 97.0
        await machine.pass_time(5)
        assert machine.active()
        await machine.watch.stop()

    asyncio.run(scenario())
