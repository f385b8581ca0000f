"""Which changes of files `dev` notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semtask.cli.watch import Watch


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("shop/models", ".venv/lib", "env/lib", "node_modules/x", "shop/__pycache__", ".git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    for name in ("tasks.py", "shop/models/order.py", "notes.txt"):
        (tmp_path / name).write_text("1")
    return tmp_path


def test_files_that_are_written_made_and_deleted(project: Path) -> None:
    watch = Watch(str(project))
    assert watch.changed() == []
    (project / "shop" / "models" / "order.py").write_text("22")
    assert watch.changed() == ["shop/models/order.py"]
    (project / "new.py").write_text("")
    (project / "tasks.py").unlink()
    assert watch.changed() == ["new.py", "tasks.py"]
    assert watch.changed() == []


def test_a_change_that_keeps_the_size_is_seen_by_its_time(project: Path) -> None:
    watch = Watch(str(project))
    now = (project / "tasks.py").stat().st_mtime_ns
    (project / "tasks.py").write_text("2")
    os.utime(project / "tasks.py", ns=(now + 1, now + 1))
    assert watch.changed() == ["tasks.py"]


@pytest.mark.parametrize(
    "path", ["notes.txt", ".venv/lib/a.py", "env/lib/a.py", "node_modules/x/a.py", "shop/__pycache__/a.py", ".git/a.py"]
)
def test_what_is_no_code_of_the_app(project: Path, path: str) -> None:
    watch = Watch(str(project))
    (project / path).write_text("changed")
    assert watch.changed() == []


def test_links_that_lead_in_a_circle_or_nowhere(project: Path) -> None:
    (project / "shop" / "again").symlink_to(project)
    (project / "gone.py").symlink_to(project / "nowhere.py")
    watch = Watch(str(project))
    (project / "tasks.py").write_text("22")
    assert watch.changed() == ["tasks.py"]


def test_it_watches_so_many_files_and_no_more(project: Path) -> None:
    for number in range(10):
        (project / "shop" / f"m{number}.py").write_text("")
    assert not Watch(str(project)).full
    watch = Watch(str(project), max_files=5)
    assert watch.full
    (project / "tasks.py").write_text("22")  # upper folders come first
    assert watch.changed() == ["tasks.py"]
