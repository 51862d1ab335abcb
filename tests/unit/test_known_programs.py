"""Programs that are known: their style, and the warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from multibinder.launch import known_programs, style_choice
from multibinder.launch.styles import STYLES
from multibinder.launch.styles.passed import Passed

TCP = Passed({"host": "127.0.0.1", "port": 80}, "web", -1)
UNIX = Passed({"endpoint": "unix@/run/app.sock"}, "app", -1)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/usr/sbin/nginx -g x", "nginx"),
        ("/usr/sbin/php-fpm8.2 -F", "php-fpm"),
        ("python3 -m gunicorn.app.wsgiapp app", "gunicorn"),
        ("/venv/bin/python3.11 -u -P /venv/bin/uvicorn app", "uvicorn"),
        ("python3 -c uvicorn", "python3"),
        ("python3", "python3"),
        ("python3 -m", "python3"),
        ("pythonista x", "pythonista"),
    ],
)
def test_a_program_is_known_by_its_name(command: str, program: str) -> None:
    assert known_programs.program_of(command.split()) == program


@pytest.mark.parametrize(
    ("program", "style"),
    [("nginx", "nginx"), ("openresty", "nginx"), ("php-fpm", "php-fpm"), ("h2o", "server-starter"), ("gunicorn", None)],
)
def test_a_style_is_known_only_where_it_is_certain(program: str, style: str | None) -> None:
    assert known_programs.style_of(program) == style
    assert style is None or style in STYLES


@pytest.mark.parametrize(
    ("command", "styles", "is_named", "warning"),
    [
        ("dovecot -F", ["systemd"], False, "dovecot shuts down each listener"),
        ("gunicorn --bind fd://{app} app", [], True, "removes the path of a Unix socket"),
        ("gunicorn app", ["systemd"], False, None),
        ("dnsmasq -k", ["systemd"], False, "closes what it inherits"),
        ("granian app", ["systemd"], False, "granian cannot take a listener"),
        ("redis-server", ["stdin"], False, "redis-server cannot take a listener"),
        ("uvicorn app:app", ["systemd"], False, "--fd {NAME}"),
        ("python3 -m uvicorn app:app", ["systemd"], False, "--fd {NAME}"),
        ("uvicorn --fd {web} app:app", [], True, None),
        ("uvicorn --fd 3 app:app", ["systemd"], False, None),
        ("hypercorn -c file.toml app:app", ["systemd"], False, None),
        ("hypercorn app:app", ["systemd"], False, "-b fd://{NAME}"),
        ("nginx", ["nginx"], False, None),
        ("apache2 -DFOREGROUND", ["systemd"], False, "mod_systemd"),
        ("php-fpm8.2 -F", ["php-fpm"], False, "removes the path of a Unix socket"),
        ("php-fpm8.2 -F", [], True, None),
    ],
)
def test_harm_is_named(command: str, styles: list[str], is_named: bool, warning: str | None) -> None:
    said = known_programs.warning_about(command.split(), [TCP, UNIX], styles, is_named)
    assert (said is None) == (warning is None)
    assert (warning or "") in (said or "")
    if command.startswith("gunicorn"):
        assert known_programs.warning_about(command.split(), [TCP], styles, is_named) is None


def test_php_fpm_gets_no_warning_about_a_port() -> None:
    assert known_programs.warning_about(["php-fpm8.2"], [TCP], ["php-fpm"], False) is None


@pytest.mark.parametrize("is_booted", [False, True])
def test_unbound_is_warned_where_it_would_take_no_socket(
    is_booted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_programs, "_BOOTED", str(tmp_path if is_booted else tmp_path / "missing"))
    said = known_programs.warning_about(["unbound", "-d"], [TCP], ["systemd"], False)
    assert (said is None) == is_booted


@pytest.mark.parametrize(
    ("styles", "command", "variables", "expected"),
    [
        (["puma"], "nginx", {}, ["puma"]),
        ([], "nginx", {}, ["nginx"]),
        ([], "app", {}, ["systemd"]),
        ([], "nginx {web}", {}, []),
        ([], "nginx {web.1}", {}, []),
        ([], "nginx", {"A": "{web}"}, []),
        ([], "nginx {ready}", {}, ["nginx"]),
    ],
)
def test_the_style_is_what_was_asked_for_or_none_with_names_or_the_programs_own(
    styles: list[str], command: str, variables: dict[str, str], expected: list[str]
) -> None:
    assert style_choice.styles_for(styles, command.split(), variables, ["web", ""]) == expected
