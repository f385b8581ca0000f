"""What is told of the disk, and the state that it amounts to."""

from __future__ import annotations

import pytest

from semtask.model.disk import FULL_BYTES, MIB, SPARE_BYTES, DiskHealth, DiskState, Room, Trouble, low_mark

OK, LOW, FULL, DEGRADED = DiskState.OK, DiskState.LOW, DiskState.FULL, DiskState.DEGRADED
RESERVE = 32 * MIB


class Disk:
    """A disk that is LOW below 100 MiB."""

    def __init__(self) -> None:
        self.health = DiskHealth()
        self.at = 0.0

    def has(self, mib: float, *others: float) -> DiskState:
        self.at += 1
        self.health.look([Room(int(one * MIB), 100 * MIB) for one in (mib, *others)], self.at)
        return self.health.state


@pytest.mark.parametrize(
    ("total", "wanted", "low"),
    [
        (64 * MIB, 0, SPARE_BYTES),
        (1000 * MIB, 0, 50 * MIB),
        (252 * 1024 * MIB, 0, 256 * MIB),  # not a part of a large disk: that would refuse work with gigabytes free
        (252 * 1024 * MIB, 10 * 1024 * MIB, 10 * 1024 * MIB),
        (252 * 1024 * MIB, 1, SPARE_BYTES),
    ],
)
def test_below_what_it_is_low(total: int, wanted: int, low: int) -> None:
    assert low_mark(total, wanted) == low


def test_low_is_left_later_than_it_is_entered() -> None:
    disk = Disk()
    assert [disk.has(mib) for mib in (200, 101, 99, 101, 124, 125, 101)] == [OK, OK, LOW, LOW, LOW, OK, OK]


def test_the_scarcest_disk_counts() -> None:
    disk = Disk()
    assert disk.has(1000, 99) is LOW
    assert disk.has(7, 1000) is FULL


def test_full_is_left_when_there_is_room_for_the_reserve_and_more() -> None:
    disk = Disk()
    assert disk.has(FULL_BYTES / MIB - 0.1) is FULL
    disk.health.released(RESERVE)
    assert disk.has(40) is FULL
    assert disk.health.reason == "the disk is full; free 8 MiB and all goes on by itself"
    assert disk.has(48) is LOW  # with the reserve taken from it
    disk.health.released(0)
    assert disk.has(16) is LOW
    assert disk.has(125) is OK
    assert disk.health.reason is None


def test_a_write_that_found_no_room_makes_it_full_and_what_the_disk_says_is_not_believed_at_once() -> None:
    disk = Disk()
    assert disk.has(10_000) is OK
    disk.health.trouble(Trouble(FULL, "there is no room"), disk.at)
    assert (disk.health.state, disk.health.no_space) == (FULL, True)
    assert disk.health.reason == "there is no room"
    assert [disk.has(10_000) for _ in range(20)] == [FULL] * 20
    disk.health.trouble(Trouble(FULL, "there is no room"), disk.at)
    disk.health.trouble(None, disk.at)
    assert [disk.has(10_000) for _ in range(6)] == [FULL] * 4 + [OK] * 2


def test_what_fails_is_worse_than_what_is_full() -> None:
    disk = Disk()
    disk.has(1)
    disk.health.trouble(Trouble(DEGRADED, "it fails"), disk.at)
    assert (disk.health.state, disk.health.reason, disk.health.no_space) == (DEGRADED, "it fails", True)
    disk.health.trouble(None, disk.at)
    assert disk.health.state is FULL
    disk.health.damaged("page 7")
    assert (disk.health.state, disk.health.reason) == (DEGRADED, "page 7")
    disk.health.damaged(None)
    assert disk.health.state is FULL


def test_a_database_that_is_locked_says_nothing_about_the_disk() -> None:
    disk = Disk()
    disk.has(1000)
    disk.health.trouble(Trouble(None, "another process keeps it locked"), disk.at)
    assert (disk.health.state, disk.health.reason) == (OK, None)
