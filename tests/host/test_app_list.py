"""The lists of apps: two files, of which both say what is executed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from semtask.config.loading import load
from semtask.config.settings import Settings
from semtask.errors import ConfigError, Conflict
from semtask.host.app_list import add_app, read_apps, remove_app
from semtask.model.app import App


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / ".config" / "semtask").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def user_file(user: Path) -> Path:
    return user / ".config" / "semtask" / "config.toml"


@pytest.fixture
def settings(user: Path) -> Settings:
    return load({"HOME": str(user)}, cwd=str(user))


def an_app(name: str = "shop", directory: str = "/srv/shop") -> App:
    return App(name=name, module="shop.tasks:app", directory=directory, python="/srv/venv/bin/python")


def the_file(settings: Settings) -> Path:
    return settings.home / "apps.json"


def closed(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


# --- what apps.json has ----------------------------------------------------------------------------------------------


def test_what_was_added_is_read_until_it_is_removed(settings: Settings) -> None:
    assert read_apps(settings) == []
    assert add_app(settings, an_app("web"))
    assert add_app(settings, an_app("shop"))
    assert read_apps(settings) == [an_app("web"), an_app("shop")]  # in the order in which they were added
    assert stat.S_IMODE(the_file(settings).stat().st_mode) == 0o600
    assert remove_app(settings.home, "web")
    assert read_apps(settings) == [an_app("shop")]
    assert not remove_app(settings.home, "web")
    assert os.listdir(settings.home) == ["apps.json"]


def test_adding_it_again_changes_nothing_and_another_place_is_another_app(settings: Settings) -> None:
    assert add_app(settings, an_app())
    before = the_file(settings).stat()
    assert not add_app(settings, an_app())
    assert os.path.samestat(before, the_file(settings).stat())
    moved = an_app(directory="/srv/new")
    with pytest.raises(Conflict, match=r"another app 'shop', shop\.tasks:app in /srv/shop, .*semtask apps rm shop"):
        add_app(settings, moved)
    assert read_apps(settings) == [an_app()]
    other_python = App(name="shop", module="shop.tasks:app", directory="/srv/shop", python="/srv/new/bin/python")
    assert add_app(settings, other_python)
    assert read_apps(settings) == [other_python]
    assert remove_app(settings.home, "shop")
    assert add_app(settings, moved)


def test_a_link_to_the_folder_is_the_same_place(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "link").symlink_to("shop")
    assert add_app(settings, an_app(directory=str(tmp_path / "shop")))
    assert add_app(settings, an_app(directory=str(tmp_path / "link")))
    assert len(read_apps(settings)) == 1


def test_many_at_once_lose_none(settings: Settings, user: Path) -> None:
    code = (
        "import sys; from semtask.config.loading import load; from semtask.host.app_list import add_app;"
        "from semtask.model.app import App; settings = load({'HOME': sys.argv[1]}, cwd='/');"
        "[add_app(settings, App(name=f'{sys.argv[2]}-{n}', module='a:b', directory='/d', python='/p'))"
        " for n in range(20)]"
    )
    adding = [subprocess.Popen([sys.executable, "-c", code, str(user), name]) for name in "abc"]
    assert [process.wait(60) for process in adding] == [0, 0, 0]
    assert {app.name for app in read_apps(settings)} == {f"{name}-{n}" for name in "abc" for n in range(20)}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"apps": {"shop": {"module": "a:b", "directory": "/d"}}}',
        '{"apps": {"shop": {"module": "a:b", "directory": "/d", "python": "/p", "user": "root"}}}',
        '{"apps": {"shop": {"module": "a b", "directory": "/d", "python": "/p"}}}',
        '{"apps": {"../shop": {"module": "a:b", "directory": "/d", "python": "/p"}}}',
        '{"apps": {"shop": {"module": "a:b", "directory": "d", "python": "/p"}}}',
        '{"apps": {"shop": {"module": "a:b", "directory": "/d", "python": "python3"}}}',
    ],
)
def test_a_file_that_is_no_list_is_named_with_the_way_out(settings: Settings, text: str) -> None:
    settings.home.mkdir(parents=True)
    closed(the_file(settings), text)
    with pytest.raises(ConfigError, match=r"apps\.json is no list of apps .*; remove it, and .*`semtask apps add`"):
        read_apps(settings)


# --- the user's settings ---------------------------------------------------------------------------------------------


def test_the_settings_are_read_as_they_are_now(settings: Settings, user_file: Path) -> None:
    closed(user_file, '[apps.shop]\nmodule = "shop.tasks"\ndirectory = "../../shop"\npython = "../../venv/bin/python"')
    home = str(user_file.parent.parent.parent)
    assert read_apps(settings) == [
        App(name="shop", module="shop.tasks:app", directory=f"{home}/shop", python=f"{home}/venv/bin/python")
    ]
    closed(user_file, '[apps.web]\nmodule = "web:tasks"\ndirectory = "/srv/web"')
    assert read_apps(settings) == [App(name="web", module="web:tasks", directory="/srv/web", python=sys.executable)]


def test_the_link_of_a_virtualenv_is_not_followed(settings: Settings, user_file: Path, tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to("/usr/bin/env")
    closed(user_file, f'[apps.web]\nmodule = "web:app"\ndirectory = "/srv"\npython = "{tmp_path}/python"')
    assert read_apps(settings)[0].python == f"{tmp_path}/python"


def test_the_settings_win_and_are_not_changed_by_adding(settings: Settings, user_file: Path) -> None:
    assert add_app(settings, an_app())
    closed(user_file, '[apps.shop]\nmodule = "shop.tasks"\ndirectory = "/srv/by-hand"\npython = "/p"')
    (shop,) = read_apps(settings)
    assert shop.directory == "/srv/by-hand"
    with pytest.raises(Conflict, match=r"the app 'shop' is defined in .*config\.toml; change it there"):
        add_app(settings, an_app(directory="/srv/other"))
    assert not add_app(settings, shop)
    assert json.loads(the_file(settings).read_text())["apps"]["shop"]["directory"] == "/srv/shop"


def test_a_wrong_setting_is_told_when_it_is_read_again(settings: Settings, user_file: Path) -> None:
    closed(user_file, "[apps.shop]\nmodul = 'shop'")
    with pytest.raises(ConfigError, match=r"config\.toml: \[apps\.shop\] knows no 'modul' \(did you mean 'module'\?\)"):
        read_apps(settings)


# --- who else could say what is executed -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_to_is_refused(settings: Settings, user_file: Path, mode: int) -> None:
    add_app(settings, an_app())
    the_file(settings).chmod(mode)
    with pytest.raises(ConfigError, match=r"others can write to .*apps\.json .*chmod go-w"):
        read_apps(settings)
    with pytest.raises(ConfigError, match="others can write to"):
        add_app(settings, an_app("web"))
    the_file(settings).unlink()
    closed(user_file, '[apps.shop]\nmodule = "shop"\ndirectory = "/srv"')
    assert len(read_apps(settings)) == 1
    user_file.chmod(mode)
    with pytest.raises(ConfigError, match=r"others can write to .*config\.toml"):
        read_apps(settings)


def test_settings_without_apps_may_be_shared(settings: Settings, user_file: Path) -> None:
    user_file.write_text("rpc_port = 1001")
    user_file.chmod(0o664)
    assert read_apps(settings) == []


def test_a_file_of_another_user_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    add_app(settings, an_app())
    owner = the_file(settings).stat().st_uid
    if owner == 0:  # files of root are everybody's; make it somebody's
        os.chown(the_file(settings), 12345, -1)
        owner = 12345
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert len(read_apps(settings)) == 1
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=rf"apps\.json belongs to another user \(uid {owner}\)"):
        read_apps(settings)
