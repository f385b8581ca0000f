"""Settings: which source wins, what each of them may say, and the one line that a wrong one gets."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from semtask.client.address import UnixAddress
from semtask.client.autostart import environment
from semtask.config.environment import DEFAULT_ENV_ALLOWLIST, inherited
from semtask.config.loading import configured_apps, load
from semtask.config.settings import Settings, documented, environment_names
from semtask.config.unused import unknown_environment
from semtask.errors import ConfigError
from semtask.host.app_list import read_apps
from semtask.host.command_policy import PolicyFile
from semtask.host.tokens import read_tokens


class Place:
    """A user with a home folder and a project."""

    def __init__(self, root: Path) -> None:
        self.home = root / "user"
        self.project = root / "project"
        self.env = {"HOME": str(self.home)}
        (self.home / ".config" / "semtask").mkdir(parents=True)
        (self.project / "sub" / "deep").mkdir(parents=True)
        self.home_file.parent.mkdir(parents=True)

    @property
    def user_file(self) -> Path:
        return self.home / ".config" / "semtask" / "config.toml"

    @property
    def home_file(self) -> Path:
        """Of the default home of semtask."""
        return self.home / ".local" / "share" / "semtask" / "config.toml"

    @property
    def project_file(self) -> Path:
        return self.project / "semantica.toml"

    def load(self, flags: Mapping[str, object] | None = None, /, **env: str) -> Settings:
        return load({**self.env, **env}, flags, cwd=str(self.project / "sub" / "deep"))

    def load_what_can_be_read(self, **env: str) -> tuple[Settings, list[str]]:
        problems: list[ConfigError] = []
        settings = load({**self.env, **env}, cwd=str(self.project / "sub" / "deep"), problems=problems)
        return settings, [problem.message for problem in problems]


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
    place.home_file.write_text("rpc_port = 1005")
    assert place.load().rpc_port == 1005
    assert place.load().origin["rpc_port"] == str(place.home_file)
    place.project_file.write_text("rpc_port = 1002")
    assert place.load().rpc_port == 1002
    assert place.load().origin["rpc_port"] == str(place.project_file)
    assert place.load(SEMANTICA_RPC_PORT="1003").rpc_port == 1003
    last = place.load({"rpc_port": 1004}, SEMANTICA_RPC_PORT="1003")
    assert last.rpc_port == 1004
    assert last.origin == {"rpc_port": "the command line", "max_connections": str(place.user_file)}
    assert last.max_connections == 50


def test_each_home_has_a_file_of_its_own(place: Place, tmp_path: Path) -> None:
    place.home_file.write_text("max_connections = 51\nqueue_concurrency = 3")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text("max_connections = 52")
    place.user_file.write_text(f'home = "{other}"\nmax_connections = 50\nmax_processes = 5')
    settings = place.load()
    assert (settings.max_connections, settings.max_processes) == (52, 5)
    assert settings.home_file == other / "config.toml"
    assert place.load({"home": str(place.home_file.parent)}).queue_concurrency == 3
    (other / "config.toml").write_text('home = "/elsewhere"')
    with pytest.raises(ConfigError, match=r"config\.toml sets `home`, and it is the file of the home"):
        place.load()


def test_the_folder_of_the_user_file_may_be_the_home(place: Place) -> None:
    place.user_file.write_text(f'home = "{place.user_file.parent}"\nmax_connections = 50')
    assert place.load().max_connections == 50


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
        ("SEMANTICA_LOG_FORMAT", "pretty", "log_format", "console"),
        ("SEMANTICA_CPU_THROTTLE_THRESHOLD", "90.0", "cpu_throttle_threshold", 90),
        ("SEMANTICA_CPU_THROTTLE_THRESHOLD", "87.5", "cpu_throttle_threshold", 87.5),
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


def test_a_folder_in_the_place_of_a_file_is_reported(place: Place, tmp_path: Path) -> None:
    home = tmp_path / "another home"
    for path in (place.user_file, place.project_file, home / "config.toml"):
        path.mkdir(parents=True)
        with pytest.raises(ConfigError) as caught:
            place.load(SEMANTICA_HOME=str(home))
        assert f"{path}: it is a folder" in caught.value.message
        _, problems = place.load_what_can_be_read(SEMANTICA_HOME=str(home))
        assert problems == [caught.value.message]
        path.rmdir()


def test_what_cannot_be_read_may_be_left_out_but_not_the_home(place: Place) -> None:
    place.user_file.write_text("max_connections = nonsense\n")
    place.project_file.write_text("queue_concurrency = 3\nautostart = 17\n")
    settings, problems = place.load_what_can_be_read(SEMANTICA_RPC_PORT="1001")
    assert (settings.queue_concurrency, settings.rpc_port) == (3, 1001)
    assert "max_connections" not in settings.origin
    of_file, of_project = problems
    assert str(place.user_file) in of_file
    assert str(place.project_file) in of_project
    with pytest.raises(ConfigError, match="SEMANTICA_MAX_PROCESSES"):
        place.load_what_can_be_read(SEMANTICA_MAX_PROCESSES="many")
    place.user_file.write_text('max_connections = nonsense\nhome = "/data"\n')
    with pytest.raises(ConfigError, match="cannot read the settings"):
        place.load_what_can_be_read()
    assert str(place.load_what_can_be_read(SEMANTICA_HOME="/other")[0].home) == "/other"
    place.user_file.write_text('home = "/data"\n')
    assert str(place.load_what_can_be_read()[0].home) == "/data"
    place.project_file.write_text('autostart = nonsense\nhome = "here"\n')
    with pytest.raises(ConfigError, match="cannot read the settings"):
        place.load_what_can_be_read()


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


_EDITED = {
    "a byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "line ends of the old Mac": lambda text: text.replace("\n", "\r").encode(),
    "both": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("encode", _EDITED.values(), ids=_EDITED.keys())
def test_every_file_may_be_saved_by_any_editor(place: Place, encode: Callable[[str], bytes]) -> None:
    """All that a person may edit: three files of settings, the policy, the two lists of the home, a token."""
    place.user_file.write_bytes(encode("# é\nmax_connections = 50\n"))
    place.home_file.write_bytes(encode("# é\nmax_finished_jobs = 51\n"))
    place.project_file.write_bytes(encode("# é\nrpc_port = 1002\n"))
    settings = place.load()
    assert (settings.max_connections, settings.max_finished_jobs, settings.rpc_port) == (50, 51, 1002)
    home = settings.home
    home.chmod(0o700)
    saved = {
        "commands.toml": '# é\nallow = [["make"]]\n',
        "apps.json": '{"apps":\n{"shop": {"module": "shop:app", "directory": "/srv/é", "python": "/p"}}}',
        "tokens.json": '{"tokens":\n{"ci": {"sha256": "x", "scopes": ["read"], "created_at": 1}}}',
    }
    for name, text in saved.items():
        (home / name).write_bytes(encode(text))
        (home / name).chmod(0o600)
    policy = PolicyFile(home / "commands.toml").read()
    assert policy is not None
    assert policy.allow == (("make",),)
    assert [app.directory for app in read_apps(settings)] == ["/srv/é"]
    assert list(read_tokens(home)) == ["ci"]
    (home / "token").write_bytes(encode("smt_x\n"))
    assert UnixAddress(home, home / "token").authorization() == "Bearer smt_x"


def test_a_file_in_another_encoding_is_named(place: Place) -> None:
    readers: dict[Path, Callable[[], object]] = {
        place.user_file: place.load,
        place.home_file: place.load,
        place.project_file: place.load,
        place.home_file.parent / "commands.toml": lambda: PolicyFile(place.home_file.parent / "commands.toml").read(),
        place.home_file.parent / "apps.json": lambda: read_apps(place.load()),
        place.home_file.parent / "tokens.json": lambda: read_tokens(place.home_file.parent),
    }
    place.home_file.parent.chmod(0o700)
    for path, read in readers.items():
        for data, said in (("tcp = true".encode("utf-16"), "UTF-16; save it as UTF-8"), (b"# \xe9", "not UTF-8")):
            path.write_bytes(data)
            path.chmod(0o600)
            with pytest.raises(ConfigError) as caught:
                read()
            assert str(path) in str(caught.value)
            assert said in str(caught.value)
        path.unlink()


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
    assert {name: app.table for name, app in configured_apps(settings).items()} == settings.apps
    assert {app.place for app in configured_apps(settings).values()} == {str(place.user_file)}


def test_an_app_of_a_later_place_takes_the_place_of_its_namesake(place: Place) -> None:
    table = '[apps.{}]\nmodule = "{}"\ndirectory = "."\n'
    place.user_file.write_text(table.format("shop", "of_user") + table.format("web", "of_user"))
    place.home_file.write_text(table.format("shop", "of_home") + table.format("mail", "of_home"))
    env = {
        "SEMANTICA_APPS__mail__MODULE": "of_environment:tasks",
        "SEMANTICA_APPS__mail__DIRECTORY": "/srv/mail",
        "SEMANTICA_APPS__mail__PYTHON": "/srv/venv/bin/python",
        "SEMANTICA_APPS__a__b__module": "twice.divided",
        "SEMANTICA_APPS__a__b__DIRECTORY": "/srv",
    }
    settings = place.load(**env)
    assert configured_apps(settings) == {
        "web": ({"module": "of_user:app", "directory": str(place.user_file.parent)}, str(place.user_file)),
        "shop": ({"module": "of_home:app", "directory": str(place.home_file.parent)}, str(place.home_file)),
        "mail": (
            {"module": "of_environment:tasks", "directory": "/srv/mail", "python": "/srv/venv/bin/python"},
            "the environment",
        ),
        "a__b": ({"module": "twice.divided:app", "directory": "/srv"}, "the environment"),
    }
    assert settings.apps == {name: app.table for name, app in configured_apps(settings).items()}
    assert settings.origin["apps"] == f"{place.user_file}, {place.home_file}, the environment"
    assert unknown_environment(env) == {}
    assert configured_apps(settings.without_apps()) == {}
    handed_on = environment(settings, env)
    assert load({**place.env, **handed_on}, cwd="/").apps == settings.apps


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SEMANTICA_APPS__shop", "SEMANTICA_APPS__shop must be SEMANTICA_APPS__NAME__KEY, with a key of MODULE"),
        ("SEMANTICA_APPS__shop__MODUL", "SEMANTICA_APPS__shop__MODUL must be SEMANTICA_APPS__NAME__KEY"),
        ("SEMANTICA_APPS__shop__MODULE", "the environment: [apps.shop] needs directory"),
    ],
)
def test_a_wrong_app_in_the_environment_is_one_line(place: Place, variable: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(**{variable: "shop.tasks"})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    apps = '[apps.evil]\nmodule = "evil"\ndirectory = "."'
    place.project_file.write_text(f'home = ".semtask"\n{apps}')
    with pytest.raises(ConfigError, match=r"semantica\.toml lists apps, .*`semtask apps add`.*config\.toml"):
        place.load()
    place.project_file.write_text('home = ".semtask"')
    (place.project / ".semtask").mkdir()
    (place.project / ".semtask" / "config.toml").write_text(f"rpc_port = 1001\n{apps}")
    with pytest.raises(ConfigError, match=r"\.semtask/config\.toml lists apps, .*`semtask apps add`"):
        place.load()
    assert "evil" in place.load(SEMANTICA_HOME=str(place.project / ".semtask")).apps  # a person has chosen it


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
    for name, _, doc in documented():
        value = getattr(settings, name)
        assert doc
        if value is not None:
            assert getattr(place.load({name: value}), name) == value


def test_every_setting_has_its_variable(place: Place) -> None:
    """What a file may say the environment may say, too; and the daemon that a client starts gets it."""
    file = tomllib.loads(_ALL_SETTINGS)
    settings = [name for name, _, _ in documented() if name != "apps"]  # see the tests of apps
    assert set(file) == set(settings)
    env = {variable: _as_text(file[name]) for name, variable, _ in documented() if name in file}
    assert unknown_environment(env) == {}
    assert set(env) < set(environment_names())
    (place.project / "sub" / "semantica.toml").write_text(_ALL_SETTINGS)
    from_file, from_environment = place.load(), load({**place.env, **env}, cwd="/")
    handed_on = load({**place.env, **environment(from_environment, env)}, cwd="/")
    for name, variable, _ in documented():
        if name in file:
            assert getattr(from_file, name) == getattr(from_environment, name) == getattr(handed_on, name), name
            assert getattr(from_file, name) != getattr(load(place.env, cwd="/"), name), f"{name} is tried with another"
            assert from_environment.origin[name] == "the environment", variable


def test_relative_paths_of_the_environment_reach_the_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another working directory than the client that starts it."""
    monkeypatch.chdir(place.project)
    env = {
        **place.env,
        "SEMANTICA_COMMAND_POLICY": "policy.toml",
        "SEMANTICA_DB_PATH": "x.db",
        "SEMANTICA_APPS__shop__MODULE": "shop",
        "SEMANTICA_APPS__shop__DIRECTORY": "shop",
    }
    handed_on = {**place.env, **environment(load(env), env)}
    monkeypatch.chdir("/")
    of_daemon = load(handed_on)
    assert of_daemon.command_policy == place.project / "policy.toml"
    assert of_daemon.database == place.project / "x.db"
    assert of_daemon.apps["shop"]["directory"] == str(place.project / "shop")


_ALL_SETTINGS = """
home = "/srv/home"
db_path = "/srv/jobs.db"
tcp = true
tcp_auth = "off"
rpc_port = 1001
log_format = "json"
recovery_window_ms = 1
max_processes = 77
queue_concurrency = 78
retry_base_delay_ms = 2
cpu_throttle_threshold = 50
retention_days = 3
max_finished_jobs = 4
max_db_size_mb = 5
disk_low_mb = 6
shutdown_grace_ms = 7
log_max_bytes = 70000
max_payload_bytes = 2048
max_body_bytes = 8192
max_connections = 9
rate_limit_requests = 10
async_jobs_per_worker = 11
worker_start_timeout_ms = 120
worker_idle_ms = 13
worker_max_jobs = 14
worker_max_memory_mb = 15
inline_result_bytes = 16
max_result_bytes = 1700
max_artifact_bytes = 4096
max_job_artifact_bytes = 8192
max_job_artifacts = 17
env_allowlist = ["PATH", "LC_*"]
command_policy = "/srv/commands.toml"
sandbox = "landlock"
autostart = false
ctrl_c = "ask"
"""


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) if isinstance(value, list) else str(value)


def test_the_settings_are_quick_to_import() -> None:
    """The command line reads them before every request: nothing heavy may come along."""
    code = "import sys, semtask.config.loading; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "ctypes", "json", "logging", "msgspec", "socket", "ssl", "subprocess", "tomllib", "difflib"}
    assert not heavy & set(loaded)
