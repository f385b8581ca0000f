from __future__ import annotations

import pytest

from semtask.model.redaction import HIDDEN, hide_secrets


@pytest.mark.parametrize(
    "name",
    ["API_TOKEN", "github_token", "AWS_SECRET_ACCESS_KEY", "PASSWORD", "PGPASSWORD", "DB_PASS", "pass", "PASSPHRASE",
     "OPENAI_API_KEY", "SSH_AUTH_SOCK", "GOOGLE_APPLICATION_CREDENTIALS", "SESSION_COOKIE", "SENTRY_DSN", "MYSQL_PWD"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert hide_secrets({name: "v"}) == {name: HIDDEN}


@pytest.mark.parametrize("name", ["PATH", "HOME", "PWD", "OLDPWD", "LANG", "USER", "PASSES", "TMPDIR"])
def test_names_of_no_secrets(name: str) -> None:
    assert hide_secrets({name: "v"}) == {name: "v"}


@pytest.mark.parametrize(
    "value", ["postgres://me:hunter2@db/x", "https://x-access@github.com", "see redis://:p@host/0"]
)
def test_a_url_with_a_login_is_a_secret_under_any_name(value: str) -> None:
    assert hide_secrets({"DATABASE_URL": value}) == {"DATABASE_URL": HIDDEN}


def test_an_empty_value_tells_that_it_is_empty() -> None:
    assert hide_secrets({"API_KEY": "", "URL": "https://host/a@b"}) == {"API_KEY": "", "URL": "https://host/a@b"}
