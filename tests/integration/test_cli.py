"""``multibinder list`` and ``multibinder release``: output, exit codes, and errors of one sentence."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from multibinder import BindError, Client, ConfigurationError, ListenerSpec, Options, TcpAddress, bind
from multibinder.cli import main, options
from tests.support import Binder, can_connect, multibinder, require_ipv6


def hold(binder: Binder, host: str, *owners: str, port: int = 8000, name: str | None = None) -> None:
    with Client(binder.socket_path) as client:
        for owner in owners:
            client.bind([ListenerSpec(TcpAddress.of(host, port), Options(backlog=77, name=name))], owner=owner)[
                0
            ].close()


def test_list_shows_every_listener(binder: Binder, host: str) -> None:
    hold(binder, host, "haproxy@web", "", name="front")
    hold(binder, host, "other", port=8001)
    done = multibinder("list", "--socket", binder.socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    heading, _, first, second = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert heading == ["ADDRESS", "OWNERS", "BACKLOG", "HANDOFFS", "AGE"]
    assert first[:-1] == [f"{host}:8000", "(front)", "haproxy@web,", "-", "77", "2"]
    assert second[:-1] == [f"{host}:8001", "other", "77", "1"]


def test_list_takes_the_socket_from_the_environment(binder: Binder, host: str) -> None:
    hold(binder, host, "a")
    done = multibinder("list", environment={"MULTIBINDER_SOCK": str(binder.socket_path)})
    assert done.returncode == 0
    assert f"{host}:8000" in done.stdout


def test_list_as_json_is_for_programs(binder: Binder, host: str) -> None:
    hold(binder, host, "a", "b", name="front")
    done = multibinder("list", "--json", "--socket", binder.socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    [listener] = json.loads(done.stdout)
    assert listener["created"] > 1.6e9
    assert listener["cookie"] > 0
    del listener["created"], listener["cookie"]
    assert listener == {
        "address": f"{host}:8000",
        "name": "front",
        "owners": ["a", "b"],
        "backlog": 77,
        "backlog_requested": 77,
        "v6only": None,
        "handoffs": 2,
        "claims": [{"label": "a", "uid": os.geteuid()}, {"label": "b", "uid": os.geteuid()}],
        "draining": False,
        "kind": "tcp",
        "shard": 0,
        "netns": 0,
        "netns_name": "",
        "options": {"backlog": 77},
    }


def test_release_of_an_address_releases_all_its_shards_of_every_kind(binder: Binder, host: str) -> None:
    texts = [f"{host}:8000", f"udp@{host}:8001"]
    for text in texts:
        for listener in bind(text, shards=2, owner="a", socket_path=binder.socket_path):
            listener.close()
    bind(f"{host}:8002", owner="a", socket_path=binder.socket_path).close()
    listed = multibinder("list", "--socket", binder.socket_path).stdout
    assert f"{host}:8000 (shard 1)" in listed
    done = multibinder("release", "--owner", "a", "--socket", binder.socket_path, *texts, f"{host}:8002-8002")
    assert (done.returncode, done.stdout.count(": closed")) == (0, 3), done
    assert multibinder("list", "--json", "--socket", binder.socket_path).stdout == "[]\n"


def test_an_empty_list_is_a_sentence_for_people_and_empty_for_programs(binder: Binder) -> None:
    done = multibinder("list", "--socket", binder.socket_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No listeners.\n")
    done = multibinder("list", "--json", "--socket", binder.socket_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_release_of_the_last_claim_closes_the_port(binder: Binder, host: str) -> None:
    hold(binder, host, "a")
    done = multibinder("release", "--socket", binder.socket_path, "--owner", "a", f"{host}:8000")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{host}:8000: closed\n", "")
    assert not can_connect((host, 8000))


def test_release_of_one_claim_of_several_says_who_keeps_it(binder: Binder, host: str) -> None:
    hold(binder, host, "a", "b", "")
    done = multibinder("release", "--socket", binder.socket_path, "--owner", "a", f"{host}:8000")
    assert (done.returncode, done.stdout) == (0, f"{host}:8000: kept, by b, a client without a label\n")
    assert can_connect((host, 8000))


def test_release_without_an_owner_drops_the_claim_without_a_label(binder: Binder, host: str) -> None:
    hold(binder, host, "")
    done = multibinder("release", "--socket", binder.socket_path, f"{host}:8000")
    assert (done.returncode, done.stdout) == (0, f"{host}:8000: closed\n")


def test_release_of_all_owners_closes_the_port(binder: Binder, host: str) -> None:
    hold(binder, host, "a", "b", "")
    done = multibinder("release", "--socket", binder.socket_path, "--all-owners", f"{host}:8000")
    assert (done.returncode, done.stdout) == (0, f"{host}:8000: closed\n")
    assert not can_connect((host, 8000))


def test_release_of_an_unknown_listener_exits_with_1_after_the_others_are_released(binder: Binder, host: str) -> None:
    hold(binder, host, "")
    done = multibinder("release", "--socket", binder.socket_path, f"{host}:1", f"{host}:8000")
    assert (done.returncode, done.stdout) == (1, f"{host}:1: absent\n{host}:8000: closed\n")


def test_release_accepts_every_spelling_of_an_ipv6_address(binder: Binder) -> None:
    require_ipv6()
    with Client(binder.socket_path) as client, client.bind([("::1", 0)])[0] as listener:
        port = listener.getsockname()[1]
    done = multibinder("release", "--all-owners", "--socket", binder.socket_path, f"tcp6@[0:0:0::1]:{port}")
    assert (done.returncode, done.stdout) == (0, f"[::1]:{port}: closed\n")


@pytest.mark.parametrize(
    "address", ["localhost:80", "1.2.3.4", "1.2.3.4:70000", "nope@1.2.3.4:80", "1.2.3.4:9-7", "1.2.3.4:" + "9" * 5000]
)
def test_an_invalid_address_is_a_usage_error(address: str) -> None:
    done = multibinder("release", "--socket", "/nowhere", address)
    assert done.returncode == 2
    assert "Invalid value for 'ADDRESS...': " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["release", "127.0.0.1:80"]])
def test_without_a_socket_path_the_message_says_what_to_set(command: list[str]) -> None:
    done = multibinder(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "multibinder: no binder is named: --socket and MULTIBINDER_SOCK are not set, and "
        "/run/multibinder/control.sock is not there; give --socket the path that 'multibinder serve --socket' has\n"
    )


def test_client_commands_find_the_binder_at_its_usual_path(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIBINDER_SOCK", raising=False)
    monkeypatch.setattr(options, "DEFAULT_SOCKET", str(binder.socket_path))
    for command in (["list"], ["status"], ["upgrade"]):
        done = CliRunner().invoke(main.multibinder, command, catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output)
    done = CliRunner().invoke(main.multibinder, ["release", "127.0.0.1:80"])
    assert done.output == "127.0.0.1:80: absent\n"


def test_the_option_and_the_variable_go_before_the_usual_path(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DEFAULT_SOCKET", str(binder.socket_path))
    monkeypatch.setenv("MULTIBINDER_SOCK", "/variable")
    for command, path in ((["list"], "/variable"), (["list", "--socket", "/option"], "/option")):
        done = CliRunner().invoke(main.multibinder, command)
        assert f"cannot reach the binder at {path}:" in str(done.exception)


def test_a_server_does_not_use_the_usual_path_by_itself(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIBINDER_SOCK", raising=False)
    monkeypatch.setattr(options, "DEFAULT_SOCKET", str(binder.socket_path))
    assert CliRunner().invoke(main.multibinder, ["serve"]).exit_code == 2
    with pytest.raises(ConfigurationError):
        Client()


@pytest.mark.parametrize("command", [["list"], ["release", "127.0.0.1:80"]])
def test_a_missing_binder_is_reported_in_one_sentence(run_dir: Path, command: list[str]) -> None:
    path = run_dir / "mb.sock"
    done = multibinder(*command, "--socket", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"multibinder: cannot reach the binder at {path}: there is no such socket; is 'multibinder serve' running?\n"
    )


def test_a_dead_binder_is_reported_in_one_sentence(binder: Binder) -> None:
    binder.process.kill()
    binder.wait()
    done = multibinder("list", "--socket", binder.socket_path)
    assert done.returncode == 1
    assert "no process listens there any more; is 'multibinder serve' running?" in done.stderr


def test_an_invalid_label_is_reported_in_one_sentence(binder: Binder) -> None:
    done = multibinder("release", "--owner", "a b", "--socket", binder.socket_path, "127.0.0.1:80")
    assert done.returncode == 1
    assert "owner 'a b' is not usable" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_has_an_example_for_each_command() -> None:
    for command in ([], ["serve"], ["list"], ["release"]):
        done = multibinder(*command, "--help")
        assert done.returncode == 0
        assert "Example:\n" in done.stdout


@pytest.mark.parametrize("group", [(), ("policy",), ("systemd",)])
def test_the_list_of_commands_has_whole_sentences(group: tuple[str, ...]) -> None:
    _, _, commands = multibinder(*group, "--help").stdout.partition("\nCommands:\n")
    sentences = [line.split(maxsplit=1)[1] for line in commands.splitlines()]
    assert sentences
    assert [sentence for sentence in sentences if not sentence.endswith(".") or sentence.endswith("..")] == []


def test_the_version_is_printed() -> None:
    import multibinder as package

    assert multibinder("--version").stdout == f"multibinder, version {package.__version__}\n"


def test_claims_of_two_users_with_one_label_are_told_apart_and_all_given_up(binder: Binder, host: str) -> None:
    address = f"{host}:8000"
    with Client(binder.socket_path) as client:
        for owner in ("web", "web:4242"):
            client.bind([(host, 8000)], owner=owner)[0].close()
    at = ["--socket", str(binder.socket_path)]
    me = os.geteuid()
    assert f"web (uid {me}), web (uid 4242)" in multibinder("list", *at, environment={"COLUMNS": "200"}).stdout
    done = multibinder("release", *at, "--owner", "web:4343", address)
    assert done.stdout == (f"{address}: kept, by web (uid {me}), web (uid 4242); not released: web:4343 has no claim\n")
    assert multibinder("release", *at, "--all-owners", address).stdout == f"{address}: closed\n"


def test_move_gives_the_claims_of_an_owner_to_another_user(binder: Binder, host: str) -> None:
    at = ["--socket", str(binder.socket_path)]
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)], owner="web:4242")[0].close()
        done = multibinder("move", *at, "web:4242", "4343")
        assert (done.returncode, done.stdout) == (0, f"{host}:8000: moved to uid 4343\n")
        assert [(owner.label, owner.uid) for owner in client.list()[0].claims] == [("web", 4343)]
    done = multibinder("move", *at, "web:4242", "4343")
    assert (done.returncode, done.stdout) == (1, "")
    assert "web:4242 has no claim" in done.stderr
    assert "there is no user nobody-of-this-name" in multibinder("move", *at, "web:1", "nobody-of-this-name").stderr


def test_an_address_in_use_is_refused_with_the_process_that_has_it(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        with socket.create_server((host, 0)) as other:
            port = other.getsockname()[1]
            for ask in (client.bind, client.check):
                with pytest.raises(
                    BindError, match=rf"address already in use, by .*\(pid {os.getpid()}\); take it over with"
                ):
                    ask([(host, port)])
        with socket.socket() as bound:
            bound.bind((host, 0))  # without SO_REUSEADDR, and it does not listen
            with pytest.raises(BindError, match=r"and no process listens there: .* \('ss -tanp', as root\)"):
                client.bind([(host, bound.getsockname()[1])])
        client.bind([(host, 8000)], owner="web")[0].close()
        # The same address in IPv6's form: of these two the kernel does not always prefer the same one.
        with pytest.raises(BindError, match=f"by {host}:8000, which this binder holds for web; release it, or"):
            client.bind([(f"::ffff:{host}", 8000)])
