"""The pytest plugin, in runs of pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

APP = """
    from semtask import Semantica
    app = Semantica()

    @app.task
    def double(number: int) -> int:
        return 2 * number
"""


def run_pytest(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(dedent(text))
    argv = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"]
    argv += ["--basetemp", str(folder / "base")]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_test_has_an_engine_of_its_own(tmp_path: Path) -> None:
    test_it = """
        import pytest
        from semtask import Client, DaemonUnavailable
        from jobs import double

        def test_double(semantica):
            handle = double.enqueue(4)
            semantica.assert_enqueued(double, number=4)
            assert [job.result for job in semantica.run_pending()] == [8]

        def test_each_test_begins_anew(semantica):
            assert semantica.jobs() == []

        def test_a_plain_client_starts_no_daemon(semantica):
            with pytest.raises(DaemonUnavailable):
                Client().stats()
    """
    assert "3 passed" in run_pytest(tmp_path, jobs=APP, test_it=test_it)


def test_it_loads_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    test_it = """
        import sys

        def test_plain():
            loaded = {name for name in sys.modules if name.split(".")[0] in {"semtask", "msgspec", "apsw"}}
            assert loaded <= {"semtask", "semtask.contrib", "semtask.contrib.pytest_plugin"}, loaded
    """
    assert "1 passed" in run_pytest(tmp_path, test_it=test_it)
