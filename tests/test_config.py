"""Settings: which source wins, what each of them may say, and the one line that a wrong one gets."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from semtask.config.environment import DEFAULT_ENV_ALLOWLIST, inherited
from semtask.config.loading import configured_apps, load
from semtask.config.settings import Settings, documented, environment_names
from semtask.config.unused import unknown_environment
from semtask.errors import ConfigError


class Place:
    """A user with a home folder and a project."""

    def __init__(self, root: Path) -> None:
        self.home = root / "user"
        self.project = root / "project"
        self.env = {"HOME": str(self.home)}
        (self.home / ".config" / "semtask").mkdir(parents=True)
        (self.project / "sub" / "deep").mkdir(parents=True)

    @property
    def user_file(self) -> Path:
        return self.home / ".config" / "semtask" / "config.toml"

    @property
    def project_file(self) -> Path:
        return self.project / "semantica.toml"

    def load(self, flags: Mapping[str, object] | None = None, /, **env: str) -> Settings:
        return load({**self.env, **env}, flags, cwd=str(self.project / "sub" / "deep"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- which source wins -----------------------------------------------------------------------------------------------


def test_defaults(place: Place) -> None:
    settings = place.load()
    assert settings.home == place.home / ".local" / "share" / "semtask"
    assert settings.database == settings.home / "meta.db"
    assert settings.socket == settings.home / "run" / "rpc.sock"
    assert not settings.tcp
    assert settings.rpc_port == 9527
    assert settings.max_processes == 2 * len(os.sched_getaffinity(0))
    assert settings.env_allowlist == DEFAULT_ENV_ALLOWLIST
    assert settings.origin == {}


def test_each_source_wins_over_the_one_before_it(place: Place) -> None:
    assert place.load().rpc_port == 9527
    place.user_file.write_text("rpc_port = 1001\nmax_connections = 50")
    assert place.load().rpc_port == 1001
    place.project_file.write_text("rpc_port = 1002")
    assert place.load().rpc_port == 1002
    assert place.load().origin["rpc_port"] == str(place.project_file)
    assert place.load(SEMANTICA_RPC_PORT="1003").rpc_port == 1003
    last = place.load({"rpc_port": 1004}, SEMANTICA_RPC_PORT="1003")
    assert last.rpc_port == 1004
    assert last.origin == {"rpc_port": "the command line", "max_connections": str(place.user_file)}
    assert last.max_connections == 50


def test_unset_is_not_default(place: Place) -> None:
    """A flag that was not given and an empty variable leave the word to the file."""
    place.project_file.write_text("rpc_port = 1002")
    assert place.load({"rpc_port": None}, SEMANTICA_RPC_PORT="").rpc_port == 1002


def test_the_nearest_project_file_counts_alone(place: Place) -> None:
    place.project_file.write_text("rpc_port = 1001\nmax_connections = 50")
    (place.project / "sub" / "semantica.toml").write_text("rpc_port = 1002")
    settings = place.load()
    assert (settings.rpc_port, settings.max_connections) == (1002, 1000)


def test_the_folders_of_xdg_are_used(place: Place, tmp_path: Path) -> None:
    (tmp_path / "xdg" / "semtask").mkdir(parents=True)
    (tmp_path / "xdg" / "semtask" / "config.toml").write_text("rpc_port = 1001")
    settings = place.load(XDG_CONFIG_HOME=str(tmp_path / "xdg"), XDG_DATA_HOME=str(tmp_path / "data"))
    assert settings.rpc_port == 1001
    assert settings.home == tmp_path / "data" / "semtask"
    relative = place.load(XDG_DATA_HOME="data", XDG_CONFIG_HOME="xdg")
    assert relative.home == place.load().home


def test_a_deleted_working_directory_only_means_that_there_is_no_project(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os; from semtask.config.loading import load; os.rmdir(os.getcwd()); print(load({'HOME': '/x'}).home)"
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("/x/.local/share/semtask\n", "")


def test_without_a_home_folder_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry in passwd
    with pytest.raises(ConfigError, match="SEMANTICA_HOME"):
        load({}, cwd=str(tmp_path))


# --- paths -----------------------------------------------------------------------------------------------------------


def test_a_path_in_a_file_is_relative_to_the_file(place: Place) -> None:
    place.project_file.write_text('home = ".semtask"\ndb_path = "~/jobs.db"')
    settings = place.load()
    assert settings.home == place.project / ".semtask"
    assert settings.db_path == Path("~/jobs.db").expanduser()


def test_a_path_in_the_environment_is_relative_to_the_working_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.project)
    assert place.load(SEMANTICA_HOME="x/../y").home == place.project / "y"


# --- what a value may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("SEMANTICA_TCP", "on", "tcp", True),
        ("SEMANTICA_TCP", "YES", "tcp", True),
        ("SEMANTICA_TCP", "0", "tcp", False),
        ("SEMANTICA_TCP_AUTH", "off", "tcp_auth", "off"),
        ("SEMANTICA_RPC_PORT", "0", "rpc_port", 0),
        ("SEMANTICA_LOG_FORMAT", "json", "log_format", "json"),
        ("SEMANTICA_RECOVERY_WINDOW_MS", "0", "recovery_window_ms", 0),
        ("SEMANTICA_MAX_PROCESSES", "3", "max_processes", 3),
        ("SEMANTICA_AUTOSTART", "off", "autostart", False),
        ("SEMANTICA_DB_PATH", "/data/jobs.db", "database", Path("/data/jobs.db")),
    ],
)
def test_values_from_the_environment(place: Place, variable: str, text: str, name: str, value: object) -> None:
    assert getattr(place.load(**{variable: text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SEMANTICA_RPC_PORT", "70000", "must be from 0 to 65535, not '70000'"),
        ("SEMANTICA_RPC_PORT", "80a", "must be a whole number, not '80a'"),
        ("SEMANTICA_RPC_PORT", "1.5", "must be a whole number, not '1.5'"),
        ("SEMANTICA_MAX_PROCESSES", "0", "must be from 1 to 100000, not '0'"),
        ("SEMANTICA_TCP", "maybe", "must be on or off, not 'maybe'"),
        ("SEMANTICA_TCP_AUTH", "none", "must be one of token, off, not 'none'"),
        ("SEMANTICA_LOG_FORMAT", "xml", "must be one of console, json, not 'xml'"),
        ("SEMANTICA_LOG_FORMAT", "a\nb", "must be one of console, json, not 'a\\nb'"),
        ("SEMANTICA_HOME", "a\0b", "must be a path, not 'a\\x00b'"),
    ],
)
def test_a_bad_value_in_the_environment_is_one_line(place: Place, variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(**{variable: text})
    assert str(caught.value) == f"{variable} (from the environment) {message}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rpc_port = true", "rpc_port (from {file}) must be a whole number, not True"),
        ("rpc_port = [1]", "rpc_port (from {file}) must be a whole number, not [1]"),
        ("home = 5", "home (from {file}) must be a path, not 5"),
        ('home = ""', "home (from {file}) must be a path, not ''"),
        ("log_format = 1", "log_format (from {file}) must be one of console, json, not 1"),
        ('env_allowlist = ["A-B"]', "must be a list of variable names, NAME or PREFIX*, not ['A-B']"),
        ('env_allowlist = ["A*B"]', "must be a list of variable names, NAME or PREFIX*, not ['A*B']"),
        ("env_allowlist = [5]", "must be a list of variable names, NAME or PREFIX*, not [5]"),
        ("max_payload_bytes = 20000000", "max_payload_bytes (20000000) must be less than max_body_bytes (11534336)"),
        ("max_conections = 5", "{file}: there is no setting 'max_conections' (did you mean 'max_connections'?)"),
        ("[queues]\nx = 1", "{file}: there is no setting 'queues'"),
        ("store = 'x'", "{file}: the setting 'store' is not served by this version"),
        ("home", "cannot read the settings in {file}: "),
    ],
)
def test_a_bad_file_is_one_line(place: Place, line: str, message: str) -> None:
    place.project_file.write_text(line)
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert message.format(file=place.project_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_closed_to_us_has_no_settings() -> None:
    """As with `sudo -u somebody` in one's own home."""
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o000)
        root = os.geteuid() == 0  # root may enter any folder, so it plays somebody else
        if root:
            os.seteuid(12345)
        try:
            settings = load({"HOME": str(closed)}, cwd=str(closed / "project"))
        finally:
            if root:
                os.seteuid(0)
    assert set(settings.origin.values()) <= {"default"}


def test_a_file_that_is_no_text_is_named(place: Place) -> None:
    place.user_file.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match=r"config\.toml"):
        place.load()


def test_a_bad_value_from_a_flag_names_the_command_line(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"^rpc_port \(from the command line\) must be from 0 to 65535, not -1$"):
        place.load({"rpc_port": -1})


def test_a_project_file_of_another_user_is_not_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.project_file.write_text("rpc_port = 1002")
    owner = place.project_file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert place.load().rpc_port == 1002
    if owner == 0:  # files of root are everybody's; make it somebody's
        os.chown(place.project_file, 12345, -1)
        owner = 12345
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"semantica.toml belongs to another user .uid {owner}."):
        place.load()


# --- apps ------------------------------------------------------------------------------------------------------------


def test_apps_of_the_user_file(place: Place) -> None:
    place.user_file.write_text(
        """
        [apps.shop]
        module = "shop.tasks"
        directory = "~/shop"
        python = "../venv/bin/python"
        [apps.web]
        module = "web:jobs.app"
        directory = "."
        """
    )
    settings = place.load()
    folder = place.user_file.parent
    assert settings.apps == {
        "shop": {
            "module": "shop.tasks:app",
            "directory": os.path.expanduser("~/shop"),
            "python": str(folder.parent / "venv" / "bin" / "python"),
        },
        "web": {"module": "web:jobs.app", "directory": str(folder)},
    }
    assert settings.origin["apps"] == str(place.user_file)
    assert settings.user_file == place.user_file
    assert configured_apps(place.user_file) == settings.apps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apps = 5", "apps must be tables, [apps.NAME]"),
        ("[apps]\nshop = 'x'", "[apps.shop] must be a table"),
        ("[apps.'a b']\nmodule = 'x'", "'a b' is no name of an app; take 1 to 64 letters, digits, _ and -"),
        ("[apps.shop]\nmodul = 'x'", "[apps.shop] knows no 'modul' (did you mean 'module'?)"),
        ("[apps.shop]\nmodule = 'x'", "[apps.shop] needs directory"),
        ("[apps.shop]\ndirectory = '/x'", "[apps.shop] needs module"),
        ("[apps.shop]\nmodule = 5", "[apps.shop]: module must be text, not 5"),
        ("[apps.shop]\nmodule = 'x'\ndirectory = ''", "[apps.shop]: directory must be text, not ''"),
        (
            "[apps.shop]\nmodule = 'tasks.py'\ndirectory = '/x'",
            "[apps.shop]: 'tasks.py' is a file; name the module as an import does, like package.module:app",
        ),
        (
            "[apps.shop]\nmodule = 'a-b'\ndirectory = '/x'",
            "[apps.shop]: 'a-b' is no module; write it like package.module:app",
        ),
        (
            "[apps.shop]\nmodule = 'x'\ndirectory = '/x'\npython = 'python3'",
            "[apps.shop]: python must be the path of an interpreter, not 'python3'",
        ),
    ],
)
def test_a_wrong_app_is_one_line_with_its_table(place: Place, text: str, message: str) -> None:
    place.user_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert str(caught.value) == f"{place.user_file}: {message}"


def test_a_project_must_not_say_what_the_daemon_runs(place: Place) -> None:
    """Not even one whose own home lies in the project: to enter a folder must not run its code."""
    place.project_file.write_text('home = ".semtask"\n[apps.evil]\nmodule = "evil"\ndirectory = "."')
    with pytest.raises(ConfigError, match=r"semantica\.toml lists apps, .*`semtask apps add`.*config\.toml"):
        place.load()


# --- what is inherited, what is unknown ------------------------------------------------------------------------------


def test_the_allowlist_takes_names_and_prefixes_and_nothing_else() -> None:
    env = {"PATH": "/bin", "LC_ALL": "C", "LC_": "x", "LANGUAGE": "de", "LANG": "C", "AWS_SECRET": "s"}
    assert inherited(env, DEFAULT_ENV_ALLOWLIST) == {"PATH": "/bin", "LC_ALL": "C", "LC_": "x", "LANG": "C"}
    assert inherited(env, ()) == {}
    assert inherited(env, ("*",)) == env


def test_what_belongs_to_one_job_is_never_inherited() -> None:
    env = {"SEMANTICA_JOB_ID": "1", "SEMANTICA_ATTEMPT": "1.1.x", "SEMANTICA_TOKEN": "smt_x", "SEMANTICA_HOME": "/h"}
    assert inherited(env, ("SEMANTICA_*", "SEMANTICA_ATTEMPT")) == {"SEMANTICA_HOME": "/h"}


def test_variables_without_effect_are_named_with_the_reason() -> None:
    env = {
        "SEMANTICA_HOME": "/h",
        "SEMANTICA_JOB_ID": "1",
        "SEMANTICA_HOEM": "/h",
        "SEMANTICA_XYZZY": "",
        "SEMANTICA_STORE": "5",
        "SEMANTICA_RATE_LIMIT_QUEUE": "5",
        "OTHER": "1",
    }
    assert unknown_environment(env) == {
        "SEMANTICA_HOEM": "is read by nothing (did you mean 'SEMANTICA_HOME'?)",
        "SEMANTICA_RATE_LIMIT_QUEUE": "is not served by this version",
        "SEMANTICA_STORE": "is not served by this version",
        "SEMANTICA_XYZZY": "is read by nothing",
    }


def test_every_setting_has_a_rule_that_accepts_its_own_default(place: Place) -> None:
    settings = place.load()
    for name, variable, doc in documented():
        value = getattr(settings, name)
        assert doc
        if value is not None:
            assert getattr(place.load({name: value}), name) == value
        if variable:
            assert variable in environment_names()


def test_the_settings_are_quick_to_import() -> None:
    """The command line reads them before every request: nothing heavy may come along."""
    code = "import sys, semtask.config.loading; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "ctypes", "json", "logging", "msgspec", "socket", "ssl", "subprocess", "tomllib", "difflib"}
    assert not heavy & set(loaded)
