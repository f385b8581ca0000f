"""`install-service` and `uninstall-service`: the daemon under systemd."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from semtask.cli.session import Command, Session, pass_session
from semtask.errors import EXIT_DISK_FAILED, EXIT_OTHER_DAEMON, StartupError

if TYPE_CHECKING:
    from semtask.config.settings import Settings

_MARK = "# Written by `semtask install-service`; `semtask uninstall-service` removes it.\n"
_SYSTEM_FOLDER = Path("/etc/systemd/system")
_MAX_SOCKET_PATH = 107  # bytes, of an address in the kernel
_STOPPING_S = 120  # beside the time that running jobs get
_OF_THE_USER = ("HOME", "USER", "LOGNAME", "SHELL")  # systemd sets them itself
_EXIT_BAD_SETTING = 2

_scope = click.option(
    "--user/--system", default=True, help="A service of your user, or of the system (as root). Default: your user."
)
_name = click.option("--name", default="semtask", show_default=True, help="The name of the units, if you have several.")


@click.command(cls=Command)
@_scope
@_name
@click.option("--print", "show", is_flag=True, help="Print the unit files and write nothing.")
@pass_session
def install_service(session: Session, user: bool, name: str, show: bool) -> None:
    """Write units for systemd: a service that runs the daemon of this home, and the socket that starts it.

    They have this Python, this home, and the SEMANTICA_* settings and the PATH of this environment. Nothing is started.
    """
    folder = _folder(user=user, name=name)
    texts = _units(session.settings, os.environ, user=user)
    if show and session.json:
        printed = [{"path": str(folder / f"{name}.{suffix}"), "text": text} for suffix, text in texts.items()]
        session.emit({"schema": "service_units.v1", "units": printed})
        return
    if show:
        for suffix, text in texts.items():
            session.line(f"# {folder / name}.{suffix}\n{text}")
        return
    paths = {folder / f"{name}.{suffix}": text for suffix, text in texts.items()}
    for path in paths:
        _require_ours(path)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path, text in paths.items():
            _write(path, text)
    except OSError as error:
        raise StartupError(f"cannot write the units to {folder}: {error.strerror}") from error
    if session.json:
        session.emit({"schema": "service_installed.v1", "units": [str(path) for path in paths]})
        return
    for path in paths:
        session.line(str(path))
    control = "systemctl --user" if user else "systemctl"
    units = " ".join(path.name for path in reversed(paths))
    session.notice(f"start it:  semtask down; {control} daemon-reload && {control} enable --now {units}")
    if "socket" not in texts:
        session.notice("there is no socket unit, as the path of the socket is too long for systemd; use a shorter home")
    if user:
        session.notice("to have it run while you are not logged in:  loginctl enable-linger")


@click.command(cls=Command)
@_scope
@_name
@pass_session
def uninstall_service(session: Session, user: bool, name: str) -> None:
    """Remove the units that install-service wrote. Exit code 4 if there are none."""
    folder = _folder(user=user, name=name)
    paths = [path for suffix in ("service", "socket") if (path := folder / f"{name}.{suffix}").exists()]
    if not paths:
        raise StartupError(f"there are no units {name}.service and {name}.socket in {folder}", exit_code=4)
    for path in paths:
        _require_ours(path)
    for path in paths:
        path.unlink()
    if session.json:
        session.emit({"schema": "service_removed.v1", "units": [str(path) for path in paths]})
        return
    for path in paths:
        session.line(str(path))
    control = "systemctl --user" if user else "systemctl"
    session.notice(f"if it still runs:  {control} stop {' '.join(path.name for path in reversed(paths))}")
    session.notice(f"then:  {control} daemon-reload")


def _folder(*, user: bool, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise click.UsageError(f"{name!r} is no name for a unit: letters, digits, dots, dashes and underscores")
    if not user:
        return _SYSTEM_FOLDER
    configuration = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(configuration) / "systemd" / "user"


def _require_ours(path: Path) -> None:
    try:
        if path.read_text(errors="replace").startswith(_MARK):
            return
    except FileNotFoundError:
        return
    raise StartupError(f"{path} was not written by semtask; remove it, or choose another --name")


def _write(path: Path, text: str) -> None:
    """Whole, and for this user alone: a setting may be a secret."""
    draft = path.with_name(f".{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.replace(draft, path)


def _units(settings: Settings, env: Mapping[str, str], *, user: bool) -> dict[str, str]:
    """The text of each unit, by its suffix. No socket where systemd could not have its path."""
    socket = os.fsencode(settings.socket)
    with_socket = len(socket) <= _MAX_SOCKET_PATH
    units = {"service": _service(settings, env, user=user)}
    if with_socket:
        units["socket"] = _socket(settings)
    return units


def _service(settings: Settings, env: Mapping[str, str], *, user: bool) -> str:
    from semtask.client.autostart import environment

    passed = {k: v for k, v in environment(settings, env).items() if k not in _OF_THE_USER}
    lines = [f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(passed.items())]
    if not user:
        lines.append(f"User={os.geteuid()}")
    stop = settings.shutdown_grace_ms // 1000 + _STOPPING_S
    return f"""{_MARK}[Unit]
Description=semtask: durable background work, home {_literal(str(settings.home))}
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={_quoted(sys.executable, command=True)} -m semtask daemon
{chr(10).join(lines)}
# A loop that is blocked for so long will not recover. SIGABRT makes no sense without a debugger.
WatchdogSec=30
WatchdogSignal=SIGKILL
Restart=on-failure
RestartSec=1
# Another daemon has the home; a setting is wrong; the disk fails.
RestartPreventExitStatus={EXIT_OTHER_DAEMON} {_EXIT_BAD_SETTING} {EXIT_DISK_FAILED}
TimeoutStartSec=600
TimeoutStopSec={stop}
# The daemon ends what it runs; what a dead one left is killed with it.
KillMode=mixed
# A job that takes too much memory ends alone.
OOMPolicy=continue
TasksMax=infinity

[Install]
WantedBy={"default.target" if user else "multi-user.target"}
"""


def _socket(settings: Settings) -> str:
    return f"""{_MARK}[Unit]
Description=The socket of semtask, home {_literal(str(settings.home))}

[Socket]
ListenStream={_literal(str(settings.socket))}
SocketMode=0600
DirectoryMode=0700
Backlog=4096

[Install]
WantedBy=sockets.target
"""


def _literal(text: str) -> str:
    """A % begins a specifier."""
    return text.replace("%", "%%")


def _quoted(text: str, *, command: bool = False) -> str:
    """One word of a unit file. In a command a $ stands for a variable, too."""
    escaped = _literal(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    if command:
        escaped = escaped.replace("$", "$$")
    return f'"{escaped}"'
