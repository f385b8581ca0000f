from __future__ import annotations

from pathlib import Path

from tests.worker.rig import worker


def test_runs_jobs_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    with worker(
        tmp_path,
        """
        @app.task
        def add(a: int, b: int = 2) -> int:
            with open("order", "a") as file:
                print(a, file=file)
            return a + b
    """,
    ) as rig:
        calls = [rig.call("add", a=n) for n in range(20)]
        rig.give(*calls)
        ends = [rig.ended(call) for call in calls]
        assert [(end.end, end.result) for end in ends] == [("done", str(n + 2)) for n in range(20)]
        assert (rig.cwd / "order").read_text().split() == [str(n) for n in range(20)]
        assert rig.hang_up() == 0
        assert rig.own_log.read_text() == ""
