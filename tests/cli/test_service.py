"""`install-service`: the units, read as systemd would; what they say is then run by hand. No systemd here."""

from __future__ import annotations

import configparser
import os
import shlex
import subprocess
from pathlib import Path

from tests.cli.rig import LIMIT_S, Shell, eventually


def folder(shell: Shell) -> Path:
    return Path(shell.env["HOME"]) / ".config" / "systemd" / "user"


def values(path: Path, section: str, key: str) -> list[str]:
    """A key may come several times."""
    found, here = [], ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        elif here == section and line.startswith(f"{key}="):
            found.append(line.partition("=")[2])
    return found


def words(text: str) -> list[str]:
    """As systemd splits a command or a list of assignments."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(text)]


def test_what_the_units_say_runs_the_daemon_of_this_home(shell: Shell) -> None:
    installed = shell("install-service", env={"SEMANTICA_RETENTION_DAYS": "3", "SECRET_TOKEN": "x"})
    assert installed.code == 0, installed
    service, socket = (folder(shell) / name for name in ("semtask.service", "semtask.socket"))
    assert installed.out.split() == [str(service), str(socket)]
    assert "systemctl --user enable --now semtask.socket semtask.service" in installed.err
    assert service.stat().st_mode & 0o777 == 0o600
    for unit in (service, socket):
        configparser.RawConfigParser(strict=False).read_string(unit.read_text())
    assert values(service, "Service", "Type") == ["notify"]
    assert values(service, "Service", "KillMode") == ["mixed"]
    assert values(service, "Service", "RestartPreventExitStatus") == ["100 2 74"]
    assert values(socket, "Socket", "ListenStream") == [str(shell.home / "run" / "rpc.sock")]
    assert values(socket, "Socket", "SocketMode") == ["0600"]
    env = dict(word.partition("=")[::2] for line in values(service, "Service", "Environment") for word in words(line))
    assert env["SEMANTICA_RETENTION_DAYS"] == "3"
    assert "SECRET_TOKEN" not in env
    (command,) = values(service, "Service", "ExecStart")
    with subprocess.Popen(words(command), env={"HOME": shell.env["HOME"], **env}, cwd="/") as daemon:
        try:
            eventually(lambda: shell("status", "-q").code == 0, what="it is up")
            assert shell.daemon_pid() == daemon.pid
        finally:
            daemon.terminate()
            assert daemon.wait(LIMIT_S) == 0


def test_odd_names_stay_one_word(tmp_path: Path) -> None:
    shell = Shell(tmp_path / 'a "b" 50% $HOME' / "home")
    shell.home.parent.mkdir()
    assert shell("install-service").code == 0
    (service,) = folder(shell).glob("*.service")
    env = dict(word.partition("=")[::2] for line in values(service, "Service", "Environment") for word in words(line))
    assert env["SEMANTICA_HOME"] == str(shell.home)


def test_printing_writes_nothing(shell: Shell) -> None:
    said = shell("install-service", "--print")
    assert said.code == 0
    assert "[Service]" in said.out
    assert "[Socket]" in said.out
    assert not folder(shell).exists()
    printed = shell("install-service", "--print", "--json").json
    assert printed["schema"] == "service_units.v1"
    assert "".join(f"# {unit['path']}\n{unit['text']}\n" for unit in printed["units"]) == said.out
    system = shell("install-service", "--print", "--system").out
    assert f"User={os.geteuid()}" in system
    assert "WantedBy=multi-user.target" in system


def test_units_of_others_are_left_alone(shell: Shell) -> None:
    folder(shell).mkdir(parents=True)
    foreign = folder(shell) / "semtask.socket"
    foreign.write_text("[Socket]\n")
    for command in ("install-service", "uninstall-service"):
        said = shell(command)
        assert said.code == 1
        assert "--name" in said.err
    assert foreign.read_text() == "[Socket]\n"
    assert not (folder(shell) / "semtask.service").exists()
    assert shell("install-service", "--name", "mine").code == 0
    assert shell("install-service", "--name", "mine").code == 0
    assert shell("install-service", "--name", "../mine").code == 2


def test_uninstalling(shell: Shell) -> None:
    assert shell("uninstall-service").code == 4
    shell("install-service")
    said = shell("uninstall-service", "--json")
    assert len(said.json["units"]) == 2
    assert list(folder(shell).iterdir()) == []


def test_a_home_too_deep_for_a_socket_of_systemd(tmp_path: Path) -> None:
    shell = Shell(tmp_path / ("d" * 100) / "home")
    shell.home.parent.mkdir()
    said = shell("install-service")
    assert said.code == 0
    assert [path.name for path in folder(shell).iterdir()] == ["semtask.service"]
    assert "shorter home" in said.err
