"""The styles: what a program is told of its listeners, and how they get their numbers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multibinder.launch import known_programs
from multibinder.launch.styles import STYLES, draft
from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.passed import Passed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def web() -> Passed:
    return Passed({"host": "127.0.0.1", "port": 80}, "web", -1)


@pytest.fixture
def admin() -> Passed:
    return Passed({"host": "::1", "port": 81}, "admin", -1)


@pytest.fixture
def path() -> Passed:
    return Passed({"endpoint": "unix@/run/app.sock"}, "", -1)


def told(sockets: list[Passed], *styles: str, **environment: str) -> dict[str, str]:
    return draft.prepare(["app"], environment, sockets, styles).environment


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("systemd", {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:admin:unknown"}),
        ("nginx", {"NGINX": "3;4;5;"}),
        ("einhorn", {"EINHORN_FD_COUNT": "3", "EINHORN_FD_0": "3", "EINHORN_FD_1": "4", "EINHORN_FD_2": "5"}),
        (
            "server-starter",
            {"SERVER_STARTER_PORT": "127.0.0.1:80=3;[::1]:81=4;/run/app.sock=5", "SERVER_STARTER_GENERATION": "1"},
        ),
        (
            "puma",
            {
                "PUMA_INHERIT_0": "3:tcp://127.0.0.1:80",
                "PUMA_INHERIT_1": "4:tcp://[::1]:81",
                "PUMA_INHERIT_2": "5:unix:///run/app.sock",
            },
        ),
        ("unicorn", {"UNICORN_FD": "3,4,5"}),
        ("php-fpm", {"FPM_SOCKETS": "127.0.0.1:80=3,::1:81=4,/run/app.sock=5"}),
    ],
)
def test_a_style_tells_the_numbers_in_its_own_variables(
    web: Passed, admin: Passed, path: Passed, style: str, expected: dict[str, str]
) -> None:
    assert told([web, admin, path], style) == expected


def test_the_default_is_systemd(web: Passed) -> None:
    made = draft.prepare(["app"], {}, [web])
    assert (made.environment, made.pid) == ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}, ("LISTEN_PID",))


def test_what_the_caller_has_of_these_variables_is_not_passed_on(web: Passed) -> None:
    stale = {"LISTEN_FDS": "9", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "NGINX": "9;", "EINHORN_FD_1": "9", "A": "1"}
    assert told([web], "nginx", **stale) == {"NGINX": "3;", "EINHORN_FD_1": "9", "A": "1"}
    assert told([web], "einhorn", **stale) == {
        "NGINX": "9;", "EINHORN_FD_COUNT": "1", "EINHORN_FD_0": "3", "A": "1",
    }  # fmt: skip


def test_several_styles_tell_the_same_numbers(web: Passed) -> None:
    made = draft.prepare(["app"], {}, [web], ["nginx", "systemd", "stdin"])
    assert made.environment == {"NGINX": "3;", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    assert [each.fd for each in made.sockets] == [3]
    assert made.stdin is not None
    assert made.stdin.fd == 0


def test_a_name_in_braces_is_a_descriptor_and_then_no_style_is_used(web: Passed, admin: Passed) -> None:
    made = draft.prepare(
        ["app", "--fd={web}", "${web} {{web}}"], {"LISTEN_FDS": "2"}, [web, admin], (), {"A": "{admin}"}
    )
    assert made.command == ["app", "--fd=3", "${web} {{web}}"]
    assert made.environment == {"A": "4"}


def test_several_listeners_of_one_name_have_numbers(web: Passed) -> None:
    shards = [Passed(web.slot, "web", -1), Passed({**web.slot, "shard": 1}, "web", -1)]
    assert draft.prepare(["app", "{web.0},{web.1}"], {}, shards).command == ["app", "3,4"]
    with pytest.raises(StyleError, match=r"several listeners.*\{web\.0\}, \{web\.1\}"):
        draft.prepare(["app", "{web}"], {}, shards)


def test_private_sockets_come_after_the_others_and_no_style_passes_them(web: Passed) -> None:
    ready = Passed({"host": "127.0.0.1", "port": 0}, "ready", -1)
    made = draft.prepare(["app", "--health={ready}"], {}, [web], private=[ready])
    assert made.command == ["app", "--health=4"]
    assert made.environment == {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    assert made.first_free == 5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"command": ["app", "{wbe}"]}, r"\{wbe\} names no listener: there is \{web\}, \{admin\}"),
        ({"command": ["app", "{web}"]}, "would not know of .*admin"),
        ({"styles": ["stdin"]}, "passes one listener, and there are 2"),
        ({"styles": ["apache"]}, "there is no style 'apache': the styles are systemd, nginx"),
        ({"variables": {"": "1"}}, "cannot be the name of a variable"),
        ({"command": ["a\0b"]}, "NUL"),
    ],
)
def test_what_the_program_could_not_understand_is_refused(
    web: Passed, admin: Passed, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StyleError, match=complaint):
        draft.prepare(**{"command": ["app"], "environment": {}, "sockets": [web, admin], **arguments})


def test_without_names_braces_belong_to_the_program(path: Passed) -> None:
    made = draft.prepare(["awk", "{print}"], {}, [path])
    assert made.command == ["awk", "{print}"]
    assert made.warnings == ["{print} stays as it is, because no -b has a name"]


@pytest.fixture
def numbers() -> Iterator[list[int]]:
    """Descriptors of five sockets, which are closed afterwards."""
    base = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 200)
    found = [base]
    for _ in range(4):
        with socket.socket() as sock:
            found.append(fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 200))
    yield found
    for fd in range(198, 225):
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [4, 3, 2, 1, 0], [1, 0, 3, 4, 2], [5, 6, 7, 8, 9]])
def test_each_socket_gets_its_number_whatever_is_there(numbers: list[int], order: list[int]) -> None:
    inodes = [os.fstat(fd).st_ino for fd in numbers]
    before = set(os.listdir("/proc/self/fd"))
    draft.place([(fd, 200 + to) for fd, to in zip(numbers, order, strict=True)])
    assert [os.fstat(200 + to).st_ino for to in order] == inodes
    assert all(os.get_inheritable(200 + to) for to in order)
    assert len(set(os.listdir("/proc/self/fd")) - before - {str(200 + to) for to in order}) <= 2  # one for each circle


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_any_numbers_is_reached(numbers: list[int], seed: int) -> None:
    chance = random.Random(seed)
    inodes = {fd: os.fstat(fd).st_ino for fd in numbers}
    moves = [(chance.choice(numbers), number) for number in chance.sample(range(198, 210), chance.randint(1, 6))]
    draft.place(moves)
    assert [os.fstat(number).st_ino for _, number in moves] == [inodes[source] for source, _ in moves]
    assert all(os.get_inheritable(number) for _, number in moves)


def test_one_socket_may_get_two_numbers(numbers: list[int]) -> None:
    inode = os.fstat(201).st_ino
    draft.place([(201, 202), (201, 200), (202, 201)])
    assert os.fstat(202).st_ino == os.fstat(200).st_ino == inode


def test_each_style_is_documented() -> None:
    rows = [line for line in (ROOT / "docs" / "how-to" / "exec.md").read_text().splitlines() if line.startswith("|")]
    recognized = {style for style in STYLES if known_programs.style_of(style) == style}
    missing = [name for name in STYLES if name not in recognized and f"`--style {name}`" not in "\n".join(rows)]
    assert missing == []


def test_the_table_names_each_style_as_its_module() -> None:
    assert {style.name: type(style).__module__.rpartition(".")[2].replace("_", "-") for style in STYLES.values()} == {
        name: name for name in STYLES
    }
