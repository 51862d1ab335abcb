"""The options of 'run' from a file and a command line become settings, or an error that says what to correct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from multibinder.launch import binds
from multibinder.launch.errors import UsageError
from multibinder.launch.run import config
from multibinder.launch.run.config import ConfigError
from multibinder.launch.run.options import overlaid, settings_of
from multibinder.launch.run.settings import ServiceOptions, ServiceSettings

EVERYTHING = """
command = ["server", "--fd", "{web}"]
style = "systemd"
env-file = "-/etc/default/server"
directory = "/srv"
instances = 4
max-overlap = 2
canary = 1
canary-for = 30
ready-http = "http://{ready}/health"
ready-timeout = 20
stable-for = 0
pre-start = "migrate"
post-ready = "true"
pre-stop = "false"
hook-timeout = 5.5
stop-signal = "QUIT"
drain-timeout = 0
owner = "me"
wait = 3
give-up-after = 60
keep-listeners = true

[[bind]]
address = "127.0.0.1:8000"
name = "web"
backlog = 100
v6only = false

[[bind]]
address = "unix@/run/server.sock"
mode = "660"

[env]
WORKERS = 3
NAME = "x"
"""


def read(text: str, tmp_path: Path) -> tuple[ServiceOptions, config.StartOptions]:
    path = tmp_path / "web.toml"
    path.write_text(text)
    return config.read(str(path), binds.parse_all)


def test_every_option_of_a_file_reaches_the_settings(tmp_path: Path) -> None:
    options, start = read(EVERYTHING.replace("v6only = false\n", ""), tmp_path)
    settings = settings_of(options)
    assert settings.command == ["server", "--fd", "{web}"]
    assert [(bind.name, bind.text) for bind in settings.binds] == [
        ("web", "127.0.0.1:8000,backlog=100=web"),
        ("", "unix@/run/server.sock,mode=660"),
    ]
    assert settings.environment == {"WORKERS": "3", "NAME": "x"}
    assert (settings.stop_signal, settings.drain_timeout_s, settings.canary) == (3, 0.0, "1")
    assert settings.ready.http == "http://{ready}/health"
    assert (settings.hooks.timeout_s, settings.ready.stable_s) == (5.5, 0.0)
    assert start == config.StartOptions(owner="me", wait=3.0, give_up_after=60.0, keep_listeners=True)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=ServiceSettings) == settings


def test_the_names_in_a_file_are_those_of_the_command_line() -> None:
    from multibinder.cli.run import run_command

    long = {option.removeprefix("--") for each in run_command.params for option in each.opts if option[:2] == "--"}
    fields = [*msgspec.structs.fields(ServiceOptions), *msgspec.structs.fields(config.StartOptions)]
    assert {field.encode_name for field in fields} - {"command"} <= long


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("comand = []", "web.toml: there is no option 'comand'; did you mean 'command'?"),
        ("ready_http = 'x'", "there is no option 'ready_http'; did you mean 'ready-http'?"),
        ("zzz = 1", "there is no option 'zzz'$"),
        ("[service]\ncommand = ['x']", "there is no option 'service'"),
        ("instances = 'two'", "instances: expected int, got str"),
        ("instances = 1.5", "instances: expected int, got float"),
        ("command = 'server --fd 3'", "command: expected array, got str"),
        ("command = [1]", "command: expected str, got int"),
        ("ready-notify = 'yes'", "ready-notify: expected bool, got str"),
        ("[env]\nA = true", "env.A: write a text in quotes"),
        ("[env]\nA = [1]", "env.A: write a text in quotes"),
        ("bind = 8000", "bind: write a list of addresses"),
        ("[[bind]]\nname = 'web'", r"bind: a table \[\[bind\]\] has no 'address'"),
        ("[[bind]]\naddress = '127.0.0.1:1'\nmode = 0o660", "bind: write mode as a text"),
        ("[[bind]]\naddress = '127.0.0.1:1'\nbaklog = 5", "there is no option baklog"),
        ("bind = ['127.0.0.1:1=a', '127.0.0.1:2=a']", "the same name"),
        ("bind = ['nonsense']", "web.toml: "),
        ("command = [", "web.toml is no TOML: "),
        ("a = '\xff'", "web.toml is no TOML: ", ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        config.read(str(tmp_path / "web.toml"), binds.parse_all)


def test_a_file_that_cannot_be_read_or_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml cannot be read: No such file"):
        config.read(str(tmp_path / "none.toml"), binds.parse_all)
    with pytest.raises(ConfigError, match="has more than"):
        read("#" * (1 << 20) + "##", tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": None}, "no command is given"),
        ({"command": []}, "no command is given"),
        ({"command": [""]}, "no command is given"),
        ({"instances": 0}, "instances is 0: it must be at least 1"),
        ({"max_overlap": -1}, "max-overlap is -1"),
        ({"canary": "0"}, "canary is '0'"),
        ({"canary": "101%"}, "canary is '101%'"),
        ({"canary": "many"}, "canary is 'many'"),
        ({"canary_for": 5.0}, "canary-for is given without canary"),
        ({"ready_http": "http://{ready}/", "ready_after": 1.0}, "ready-http and ready-after are two checks"),
        ({"ready_http": "http://name/"}, "'name' is a name"),
        ({"ready_line": "["}, "no regular expression"),
        ({"ready_after": 60.0}, r"ready-after \(60 s\) is not below ready-timeout"),
        ({"ready_timeout": 0.0}, "ready-timeout is 0: give a number of seconds above 0"),
        ({"drain_timeout": -1.0}, "drain-timeout is -1"),
        ({"drain_timeout": float("nan")}, "drain-timeout is nan"),
        ({"hook_timeout": float("inf")}, "hook-timeout is inf"),
        ({"stop_signal": "NONE"}, "stop-signal is 'NONE'"),
        ({"stop_signal": 0}, "stop-signal is 0"),
        ({"stop_signal": "65"}, "stop-signal is '65'"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_of(ServiceOptions(**{"command": ["x"], **options}))


@pytest.mark.parametrize(("given", "number"), [("TERM", 15), ("sigquit", 3), ("10", 10), (12, 12), (None, 15)])
def test_the_stop_signal_by_name_or_number(given: str | int | None, number: int) -> None:
    assert settings_of(ServiceOptions(command=["x"], stop_signal=given)).stop_signal == number


def test_the_command_line_wins_over_the_file() -> None:
    below = ServiceOptions(command=["a"], instances=2, ready_http="http://{ready}/", env={"A": "1", "B": "1"})
    above = ServiceOptions(instances=3, ready_after=1.0, env={"B": "2"})
    together = overlaid(below, above)
    assert together == ServiceOptions(command=["a"], instances=3, ready_after=1.0, env={"A": "1", "B": "2"})
    assert overlaid(below, ServiceOptions()) == below
