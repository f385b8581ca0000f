"""The policy for commands at a real daemon: what it lets through, what it refuses, and that it cannot be fooled."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.daemon.rig import Daemon, Json, RpcFailed, command_params, eventually, running_daemon
from tests.daemon.test_isolation import write_apps
from tests.executors.rig import make_spec, rig
from tests.security import flipper

UNAUTHORIZED = 4004


class Ground(NamedTuple):
    """Programs and folders to be judged, and a daemon that judges them."""

    daemon: Daemon
    root: Path

    def at(self, *names: str) -> str:
        return ":".join(str(self.root / name) if name else "" for name in names)


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {says} "$@"\n')
    path.chmod(0o755)


def write_policy(home: Path, **policy: Any) -> Path:
    """By rename, as an editor does."""
    home.mkdir(mode=0o700, exist_ok=True)
    path = home / "commands.toml"
    fresh = home / "fresh.toml"
    fresh.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in policy.items()))
    fresh.chmod(0o600)
    fresh.rename(path)
    return path


def semtask(daemon: Daemon, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "semtask", *argv]
    env = {**daemon.env, **env}
    return subprocess.run(words, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def refusal(daemon: Daemon, params: Json) -> RpcFailed | None:
    try:
        daemon.rpc("dev.enqueue.v1", **params)
    except RpcFailed as refused:
        return refused
    return None


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    root = tmp_path_factory.mktemp("policy")
    for place, says in (("tools", "good"), ("evil", "evil"), ("work", "planted")):
        program(root / place / "git", says)
    for name in ("make", "box", "push-all"):
        program(root / "tools" / name, name)
    (root / "tools" / "ls").symlink_to("box")
    (root / "aliases").mkdir()
    (root / "aliases" / "g").symlink_to(root / "tools" / "git")
    (root / "aliases" / "sh").symlink_to(root / "tools" / "box")
    (root / "same").mkdir()
    (root / "same" / "git").symlink_to("../tools/git")
    os.link(root / "tools" / "git", root / "aliases" / "hard")
    for folder in ("work/deep", "workshop", "outside"):
        (root / folder).mkdir(parents=True)
    (root / "work" / "way-out").symlink_to(root / "outside")
    (root / "way-in").symlink_to(root / "work" / "deep")
    home = root / "home"
    write_policy(
        home,
        path=str(root / "tools"),
        directories=[f"{root}/work/"],
        allow=[["git"], ["make", "test"], ["ls"], [str(root / "tools" / "push-all"), ""]],
        deny=[["git", "push"], ["sudo"]],
    )
    with running_daemon(home) as daemon:
        yield Ground(daemon, root)


# argv, the PATH of the job and its folder, below the root; the rule that refuses it
CASES: dict[str, tuple[list[str], list[str], str, str | None]] = {
    "by name": (["git", "status"], ["tools"], "work", None),
    "without arguments": (["git"], ["tools"], "work", None),
    "with an empty argument": (["git", ""], ["tools"], "work", None),
    "by path": (["{root}/tools/git", "status"], [], "work", None),
    "by a path with ..": (["{root}/evil/../tools/git"], [], "work", None),
    "by a relative path": (["../tools/git"], [], "work", None),
    "by a link of the same name": (["git"], ["same"], "work", None),
    "found behind folders that have no such program": (["git"], ["outside", "nowhere", "tools"], "work", None),
    "a whole beginning": (["make", "test"], ["tools"], "work", None),
    "more than a beginning": (["make", "test", "-k"], ["tools"], "work", None),
    "one of many programs in a file": (["ls", "-l"], ["tools"], "work", None),
    "an empty word that is wanted": (["{root}/tools/push-all", ""], [], "work", None),
    "deeper": (["git"], ["tools"], "work/deep", None),
    "a folder with a slash": (["git"], ["tools"], "work/", None),
    "a folder with .. that ends inside": (["git"], ["tools"], "outside/../work/deep/..", None),
    "a link that leads inside": (["git"], ["tools"], "way-in", None),
    "denied by name": (["git", "push"], ["tools"], "work", "deny"),
    "denied with more": (["git", "push", "--force"], ["tools"], "work", "deny"),
    "denied by path": (["{root}/tools/git", "push"], [], "work", "deny"),
    "denied by a path with ..": (["{root}/evil/../tools/git", "push"], [], "work", "deny"),
    "denied by a relative path": (["../tools/git", "push"], [], "work", "deny"),
    "denied through a link": (["g", "push"], ["aliases"], "work", "deny"),
    "denied through a hard link": (["hard", "push"], ["aliases"], "work", "deny"),
    "denied by the name of another file": (["git", "push"], ["evil"], "work", "deny"),
    "denied though there is no such program": (["sudo", "true"], ["tools"], "work", "deny"),
    "denied by path though there is no such program": (["/nowhere/sudo"], [], "work", "deny"),
    "another program by PATH": (["git", "status"], ["evil", "tools"], "work", "allow"),
    "a program of the folder by ./": (["./git"], ["tools"], "work", "allow"),
    "a program of the folder by an empty PATH": (["git"], [""], "work", "allow"),
    "a program of the folder by an empty place in PATH": (["git"], ["", "tools"], "work", "allow"),
    "the same file under another name": (["g", "status"], ["aliases"], "work", "allow"),
    "another program of a file with many": (["sh", "-c", "x"], ["aliases"], "work", "allow"),
    "a file with many itself": (["box", "sh"], ["tools"], "work", "allow"),
    "in capitals": (["GIT"], ["tools"], "work", "allow"),
    "not found": (["git"], ["outside"], "work", "allow"),
    "less than a beginning": (["make"], ["tools"], "work", "allow"),
    "something before the beginning": (["make", "", "test"], ["tools"], "work", "allow"),
    "a word that begins alike": (["make", "tests"], ["tools"], "work", "allow"),
    "words in one": (["make", "test -k"], ["tools"], "work", "allow"),
    "without the empty word": (["{root}/tools/push-all"], [], "work", "allow"),
    "a folder": (["{root}/tools"], [], "work", "allow"),
    "elsewhere": (["git"], ["tools"], "outside", "directories"),
    "by .. out": (["git"], ["tools"], "work/../outside", "directories"),
    "by a link out": (["git"], ["tools"], "work/way-out", "directories"),
    "in a folder whose name begins alike": (["git"], ["tools"], "workshop", "directories"),
    "in the folder above": (["git"], ["tools"], "", "directories"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_may_run(ground: Ground, case: str) -> None:
    argv, path, folder, rule = CASES[case]
    params = command_params(
        *(word.replace("{root}", str(ground.root)) for word in argv),
        env={"PATH": ground.at(*path)},
        working_dir=f"{ground.root}/{folder}",
    )
    before = ground.daemon.stats()["total_jobs"]
    refused = refusal(ground.daemon, params)
    said = semtask_check(ground, params) if case in {"denied through a link", "by name", "elsewhere"} else None
    if rule is None:
        assert refused is None
        assert said in (None, 0)
        return
    assert refused is not None, "it was accepted"
    assert refused.code == UNAUTHORIZED
    assert refused.data["details"]["rule"].partition(" ")[0] == rule
    assert str(ground.daemon.home / "commands.toml") in refused.message
    assert ground.daemon.stats()["total_jobs"] == before
    assert said in (None, 1)


def semtask_check(ground: Ground, params: Json) -> int:
    payload = params["payload"]
    where = ["--cwd", payload["working_dir"], "--env", f"PATH={payload['env']['PATH']}"]
    said = semtask(ground.daemon, "policy", "check", "--json", *where, "--", payload["command"], *payload["args"])
    answer = json.loads(said.stdout)
    assert answer["allowed"] == (said.returncode == 0)
    return said.returncode


def test_a_job_without_a_folder_of_its_own_is_judged_in_the_one_that_it_gets(ground: Ground) -> None:
    refused = refusal(ground.daemon, command_params("git", env={"PATH": ground.at("tools")}))
    assert refused is not None
    assert refused.data["details"]["rule"] == "directories"


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH"])
def test_no_variable_has_an_allowed_program_run_other_code(ground: Ground, name: str) -> None:
    env = {"PATH": ground.at("tools"), name: "/tmp/evil.so"}
    refused = refusal(ground.daemon, command_params("git", env=env, working_dir=ground.at("work")))
    assert refused is not None
    assert name in refused.message


def test_what_is_allowed_runs(ground: Ground) -> None:
    job_id = ground.daemon.command("git", "status", env={"PATH": ground.at("same")}, working_dir=ground.at("way-in"))
    assert ground.daemon.wait(job_id)[0]["state"] == "DONE"
    assert ground.daemon.log(job_id) == "good status\n"


def test_of_many_jobs_all_are_accepted_or_none(ground: Ground) -> None:
    env, folder = {"PATH": ground.at("tools")}, ground.at("work")
    jobs = [command_params("git", word, env=env, working_dir=folder) for word in ("status", "fetch", "push")]
    before = ground.daemon.stats()["total_jobs"]
    with pytest.raises(RpcFailed, match=r"jobs\[2\]") as refused:
        ground.daemon.rpc("dev.enqueue_many.v1", jobs=jobs)
    assert refused.value.code == UNAUTHORIZED
    assert ground.daemon.stats()["total_jobs"] == before
    assert len(ground.daemon.rpc("dev.enqueue_many.v1", jobs=jobs[:2])["jobs"]) == 2


def test_a_refusal_tells_no_arguments(ground: Ground) -> None:
    params = command_params("curl", "--user", "me:s3cret", working_dir=ground.at("work"))
    refused = refusal(ground.daemon, params)
    assert refused is not None
    assert "s3cret" not in refused.message + json.dumps(refused.data)


def test_the_file_that_was_judged_is_started_under_its_name(tmp_path: Path) -> None:
    """Whatever PATH leads to by then."""
    program(tmp_path / "evil" / "sh", "evil")

    async def main() -> None:
        async with rig(tmp_path) as r:
            spec = make_spec(["sh", "-c", 'echo "$0"'], env={"PATH": str(tmp_path / "evil")})
            fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
            judged = type(spec)(**{**fields, "executable": "/bin/sh"})
            assert (await r.run(judged)).failure is None
            assert r.output() == "sh\n"

    asyncio.run(main())


@pytest.mark.needs("bubblewrap")
def test_a_program_keeps_its_name_in_every_sandbox(tmp_path: Path) -> None:
    """Else `ls sh` would be `box sh`, with a file that is many programs."""
    tools, home = tmp_path / "tools", tmp_path / "home"
    tools.mkdir()
    (tools / "box").write_text('#!/bin/sh\necho "${0##*/} $*"\n')
    (tools / "box").chmod(0o755)
    (tools / "ls").symlink_to("box")
    write_policy(home, path=str(tools), allow=[["ls"]])
    with running_daemon(home) as daemon:
        payload = {"command": "ls", "args": ["sh"], "env": {"PATH": str(tools)}, "working_dir": str(tools)}
        params = {"job_type": "t", "execution_mode": "SUBPROCESS"}
        job_id = daemon.rpc("dev.enqueue.v1", **params, payload={**payload, "sandbox": "bwrap"})["job_id"]
        ended = daemon.wait(job_id)[0]
        assert ended["state"] == "DONE", ended["error"]
        assert daemon.log(job_id) == "ls sh\n"


@pytest.mark.parametrize("kind", ["link", "hard link"])
@pytest.mark.parametrize("sandbox", ["none", pytest.param("bwrap", marks=pytest.mark.needs("bubblewrap"))])
def test_what_takes_the_place_of_an_allowed_program_is_not_started(tmp_path: Path, kind: str, sandbox: str) -> None:
    """Between the judgement and the start, in a folder of the job's, again and again."""
    tools, own = tmp_path / "tools", tmp_path / "own"
    program(tools / "git", "good")
    program(own / "other", "evil")
    (own / "git").symlink_to(tools / "git") if kind == "link" else os.link(tools / "git", own / "git")
    write_policy(tmp_path / "home", path=str(tools), allow=[["git"]])
    payload = {"command": "git", "env": {"PATH": str(own)}, "working_dir": str(own)}
    if sandbox == "bwrap":
        payload["sandbox"] = {"level": "bwrap", "read": [str(tools)]}
    said = run_while_exchanged(tmp_path / "home", payload, own / "git", own / "other")
    assert {word for word in said if word.strip()} == {"good\n"}


def test_what_takes_the_place_of_an_allowed_folder_is_not_entered(tmp_path: Path) -> None:
    place, way_out = tmp_path / "work" / "place", tmp_path / "work" / "way-out"
    place.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    way_out.symlink_to(tmp_path / "outside")
    write_policy(tmp_path / "home", directories=[str(tmp_path / "work")])
    said = run_while_exchanged(
        tmp_path / "home", {"command": "/bin/pwd", "args": ["-P"], "working_dir": str(place)}, place, way_out
    )
    # While it runs the folder itself goes to and fro.
    assert {word for word in said if word.strip()} <= {f"{place}\n", f"{way_out}\n"}


def run_while_exchanged(home: Path, payload: dict[str, Any], one: Path, other: Path) -> list[str]:
    """What a hundred jobs say while one name and the other one are exchanged for each other. Each of them ends."""
    params = {"job_type": "t", "execution_mode": "SUBPROCESS", "payload": payload}
    jobs = []
    with running_daemon(home) as daemon:
        with subprocess.Popen([sys.executable, "-I", "-S", flipper.__file__, str(one), str(other)]) as flips:
            try:
                for _ in range(100):
                    with suppress(RpcFailed):  # refused: it was another one just then
                        jobs.append(daemon.rpc("dev.enqueue.v1", **params)["job_id"])
                daemon.wait(*jobs)
            finally:
                flips.kill()
        return [daemon.log(job_id) for job_id in jobs]


# --- a policy that changes -----------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "home") as running:
        yield running


def marked(daemon: Daemon, **options: Any) -> tuple[str, Path]:
    """A job that waits in a paused queue, and the file that it will make."""
    mark = daemon.home / "mark"
    daemon.rpc("queues.pause.v1", queue="default")
    return daemon.command("sh", "-c", f"echo ran >> {mark}", **options), mark


def test_without_a_file_every_command_may_run(daemon: Daemon) -> None:
    assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
    assert semtask(daemon, "policy", "check", "--", "anything").returncode == 0
    assert "commands.toml" in semtask(daemon, "policy", "show").stdout


def test_a_job_that_was_stored_before_is_judged_again_when_it_starts(daemon: Daemon) -> None:
    job_id, mark = marked(daemon, max_attempts=5)
    write_policy(daemon.home, deny=[["sh"]])
    daemon.rpc("queues.resume.v1", queue="default")
    ended = daemon.wait(job_id)[0]
    assert (ended["state"], ended["end_cause"], ended["attempts"]) == ("FAILED", "spawn_failed", 1)
    assert 'deny = [["sh"]]' in ended["error"]
    assert not mark.exists()
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.retry.v1", job_id=job_id)
    assert refused.value.code == UNAUTHORIZED
    write_policy(daemon.home, deny=[["bash"]])
    copy = daemon.rpc("dev.retry.v1", job_id=job_id)["job_id"]
    assert daemon.wait(copy)[0]["state"] == "DONE"
    assert mark.read_text() == "ran\n"


def test_every_attempt_is_judged(daemon: Daemon) -> None:
    job_id = daemon.command("sh", "-c", "exit 1", max_attempts=3, retry_base_delay_ms=1500)
    eventually(lambda: daemon.job(job_id)["state"] == "SCHEDULED")
    write_policy(daemon.home, allow=[["true"]])
    ended = daemon.wait(job_id)[0]
    assert (ended["end_cause"], ended["attempts"]) == ("spawn_failed", 2)


def broken(path: Path) -> None:
    path.write_text("deny = [")


def nested(path: Path) -> None:
    path.write_text("deny = " + 100_000 * "[")


def misspelled(path: Path) -> None:
    path.write_text('alow = [["true"]]')


def ill_typed(path: Path) -> None:
    path.write_text('allow = ["git status"]')


def without_program(path: Path) -> None:
    path.write_text("deny = [[]]")


def relative(path: Path) -> None:
    path.write_text('directories = ["work"]')


def emptied(path: Path) -> None:
    path.write_text("")


def writable(path: Path) -> None:
    path.chmod(0o620)


def in_a_writable_folder(path: Path) -> None:
    path.parent.chmod(0o720)


def foreign(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "elsewhere.toml")


HARMS = [
    broken,
    nested,
    misspelled,
    ill_typed,
    without_program,
    relative,
    emptied,
    writable,
    in_a_writable_folder,
    foreign,
    a_folder,
    a_pipe,
    a_link_to_nowhere,
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_policy_that_cannot_be_used_lets_nothing_through_and_loses_nothing(
    daemon: Daemon, harm: Callable[[Path], None]
) -> None:
    job_id, mark = marked(daemon)
    path = write_policy(daemon.home, deny=[["nobody"]])
    harm(path)
    daemon.rpc("queues.resume.v1", queue="default")
    waiting = daemon.job(job_id)["waiting"]
    assert waiting["reason"] == "policy"
    assert str(path.parent) in waiting["text"]
    refused = refusal(daemon, command_params("true"))
    assert refused is not None
    assert refused.code == UNAUTHORIZED
    assert "policy" in refused.message
    assert daemon.stats()["commands_held"] in refused.message
    assert daemon.job(job_id)["state"] == "QUEUED"
    assert not mark.exists()
    assert b'semantica_throttled{reason="policy"} 1' in daemon.get("/metrics")[1]
    if path.is_dir():
        path.rmdir()
    path.parent.chmod(0o700)
    write_policy(daemon.home, deny=[["nobody"]])
    assert daemon.wait(job_id)[0]["state"] == "DONE"
    assert mark.read_text() == "ran\n"
    assert daemon.stats()["commands_held"] is None


def test_people_are_told_of_a_policy_that_cannot_be_used(daemon: Daemon) -> None:
    write_policy(daemon.home, alow=[["true"]])
    for argv, code in (
        (["status"], 0),
        (["doctor"], 1),
        (["policy", "show"], 2),
        (["policy", "check", "true"], 2),
        (["run", "true"], 6),
    ):
        said = semtask(daemon, *argv)
        assert said.returncode == code, argv
        assert "did you mean 'allow'?" in said.stdout + said.stderr, argv
    eventually(lambda: "no command is accepted or started" in (daemon.home / "logs" / "daemon.log").read_text())


def test_tasks_go_on_while_commands_are_held(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_apps(home, "tests.security.leaky:app")
    with running_daemon(home) as daemon:
        command, _ = marked(daemon)
        write_policy(home, deny="nonsense")
        daemon.rpc("queues.resume.v1", queue="default")
        task = daemon.rpc(
            "dev.enqueue.v1",
            job_type="tests.security.leaky:leak",
            execution_mode="IN_PROCESS",
            payload={"secret": "x", "number": -1},
        )["job_id"]
        assert daemon.wait(task)[0]["state"] == "DONE"
        assert daemon.job(command)["state"] == "QUEUED"


def test_a_daemon_starts_with_a_policy_that_cannot_be_used_and_holds_commands(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_policy(home, deny=[["nobody"]])
    with running_daemon(home) as daemon:
        job_id, mark = marked(daemon)
        daemon.terminate()
        (home / "commands.toml").write_text("nonsense")
        daemon.start()
        daemon.rpc("queues.resume.v1", queue="default")
        assert daemon.job(job_id)["waiting"]["reason"] == "policy"
        assert "no command is accepted or started" in (home / "logs" / "daemon.log").read_text()
        write_policy(home, deny=[["nobody"]])
        assert daemon.wait(job_id)[0]["state"] == "DONE"
        assert mark.exists()


def test_a_file_that_the_settings_name_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "rules" / "commands.toml"
    with running_daemon(tmp_path / "home", SEMANTICA_COMMAND_POLICY=str(path)) as daemon:
        refused = refusal(daemon, command_params("true"))
        assert refused is not None
        assert str(path) in refused.message
        path.parent.mkdir(mode=0o700)
        write_policy(path.parent, allow=[["true"]])
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
        assert refusal(daemon, command_params("false")) is not None


def test_a_policy_is_shown_with_what_it_means(ground: Ground) -> None:
    shown = json.loads(semtask(ground.daemon, "policy", "show", "--json").stdout)
    assert {"words": ["ls"], "program": str(ground.root / "tools" / "box")} in shown["allow"]
    assert shown["directories"] == [str(ground.root / "work")]
    assert {"words": ["sudo"], "program": None} in shown["deny"]  # there is none in the folder of this test
    assert "deny   git push" in semtask(ground.daemon, "policy", "show").stdout
    refused = semtask(ground.daemon, "policy", "check", "--cwd", str(ground.root / "work"), "--", "git", "push")
    assert (refused.returncode, refused.stdout.splitlines()[0]) == (1, "refused: `git push` is denied")
