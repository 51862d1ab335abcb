"""``multibinder run`` refuses what cannot be right before anything is bound, with a sentence for a newcomer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from multibinder.cli import run
from multibinder.launch.run.files import RunInstance
from multibinder.launch.run.settings import Bind, RunSettings, ServiceSettings


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused(runtime: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(run.run_command, ["--runtime-dir", str(runtime), *arguments])
    return result.exit_code, result.output


class Became(Exception):
    pass


@pytest.fixture
def became(runtime: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that gives the settings with which the command line would become the process."""

    def settings(*arguments: str) -> RunSettings:
        found: list[str] = []

        def execv(_path: str, words: list[str]) -> None:
            found.append(words[-1])
            raise Became

        monkeypatch.setattr("os.execv", execv)
        CliRunner().invoke(run.run_command, ["--runtime-dir", str(runtime), *arguments])
        return msgspec.json.decode(found[0], type=RunSettings)

    return settings


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-b", "127.0.0.1:80", "--", "true"], 2, "Missing option '--name'"),
        (["--name", "web", "--nam", "x"], 2, "No such option"),
        (["--name", "web", "--", "true"], 2, "no address is given: '-b ADDRESS'"),
        (["--name", "web", "-b", "127.0.0.1:80"], 2, "write it after '--'"),
        (["--name", "web", "-b", "192.0.2.1", "--", "true"], 2, "has no port"),
        (["--name", "web", "-b", "127.0.0.1:80", "--style", "systmd", "--", "true"], 2, "is not one of 'systemd'"),
        (["--name", "a/b", "-b", "127.0.0.1:80", "--", "true"], 2, "is no instance name"),
        (["--name", "web", "-b", "127.0.0.1:80", "--", "no-such-command"], 127, "command not found: no-such-command"),
        (["--name", "web", "-b", "127.0.0.1:80", "--", "/etc"], 126, "is a directory"),
        (["--name", "web", "-b", "127.0.0.1:80=web", "--", "true", "{wbe}"], 2, "{wbe} names no listener"),
        (["--name", "web", "-b", "127.0.0.1:80", "--ready-http", "http://{ready}/", "--", "true"], 2, "{ready}"),
        (["--name", "web", "-b", "127.0.0.1:80", "--env", "A", "--", "true"], 2, "is not of the form KEY=VALUE"),
        (
            ["--name", "w" * 64, "--runtime-dir", "/tmp/" + "x" * 40, "-b", "127.0.0.1:80", "--", "true"],
            2,
            "is too long a path",
        ),
        (["--name", "web", "--config", "/nonexistent/web.toml"], 1, "cannot be read"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_sentence(
    runtime: Path, arguments: list[str], code: int, sentence: str
) -> None:
    found, said = refused(runtime, *arguments)
    assert (found, sentence in said) == (code, True), said


def test_the_command_line_wins_over_the_file_and_is_passed_on_for_later_reloads(became, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "web.toml"
    file.write_text('command = ["sleep", "1"]\nbind = ["127.0.0.1:81"]\ninstances = 3\nkeep-listeners = true\n')
    settings = became("--name", "web", "--config", str(file), "--instances", "2")
    assert settings.service.command == ["sleep", "1"]
    assert settings.service.instances == settings.given.instances == 2
    assert settings.given.command is None
    assert (settings.owner, settings.keep_listeners, settings.config) == ("run@web", True, str(file))


def test_a_broken_file_at_a_start_is_replaced_by_the_last_good_settings(  # type: ignore[no-untyped-def]
    became, runtime: Path, tmp_path: Path
) -> None:
    file = tmp_path / "web.toml"
    file.write_text('comand = "true"\n')
    arguments = ["--name", "web", "--config", str(file)]
    code, said = refused(runtime, *arguments)
    assert (code, "there is no option 'comand'" in said) == (1, True), said
    instance = RunInstance(str(runtime), "web")
    instance.create()
    good = ServiceSettings(["true"], [Bind("127.0.0.1:80", "", [{"host": "127.0.0.1", "port": 80}])])
    instance.write_record("last-good.json", good)
    code, said = refused(runtime, *arguments, "--strict")
    assert (code, "there is no option" in said) == (1, True)
    assert became(*arguments).service == good


def test_a_broken_address_in_the_file_is_a_sentence(runtime: Path, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text('command = "true"\nbind = ["nowhere"]\n')
    code, said = refused(runtime, "--name", "web", "--config", str(file))
    assert code == 1
    assert str(file) in said
    assert "Traceback" not in said
