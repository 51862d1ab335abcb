"""The quick parser of ``exec`` reads a command line as the full one does, or leaves it to that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import multibinder.cli.exec as exec_module
from multibinder.launch import binds
from multibinder.launch.exec import quick
from multibinder.launch.exec.request import Request, usual_owner
from multibinder.wire.errors import AddressError
from multibinder.wire.options import check_label


class Became(Exception):
    """The full parser has read a command line."""


def fully(arguments: Sequence[str], socket: str = "/run/a.sock") -> Request | None:
    """Return what the full parser makes of a command line; None for a mistake."""
    found: list[Request] = []

    def note(request: Request) -> None:
        found.append(request)
        raise Became

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exec_module, "become", note)
        patch.setenv("MULTIBINDER_SOCK", socket)
        try:
            exec_module.exec_command.main(list(arguments), standalone_mode=False)
        except click.UsageError:
            return None
        except Became:
            pass
    return found[0] if found else None


HOSTS = st.sampled_from(
    [
        "127.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[2001:DB8::1]",
        "[::ffff:1.2.3.4]",
        "::1",
        "1.2.3",
        "01.2.3.4",
        "*",
        "",
        "a",
    ]
)
PORTS = st.one_of(st.integers(0, 70000).map(str), st.sampled_from(["080", "80-82", "", "x", "²"]))
INET = st.builds("{}{}:{}".format, st.sampled_from(["", "udp@", "tcp@", "ipv4@", "mptcp@"]), HOSTS, PORTS)
PATHS = st.builds(
    "{}{}".format,
    st.sampled_from(["unix@", "/", "uxdg@", "abns@"]),
    st.sampled_from(
        ["/run/a.sock", "/run//a", "/run/a/", "//run/a", "/a/../b", "run", "/", "/" + "a" * 120, "/r n/a", "/a@b=c"]
    ),
)
OPTIONS = st.lists(
    st.builds(
        ",{}={}".format,
        st.sampled_from(["backlog", "shards", "mode", "freebind", "v6only", "mss", "Backlog", "fish", "netns", "name"]),
        st.one_of(
            st.integers(0, 300).map(str), st.sampled_from(["", "cpus", "true", "660", "3000000000", "-1", "blue"])
        ),
    ),
    max_size=2,
).map("".join)
NAMES = st.sampled_from(["", "", "=web", "=admin", "=ready", "=", "=1a", "=a.b-c", "=a b", "=" + "a" * 65])
BINDS = st.one_of(
    st.builds("{}{}{}".format, st.one_of(INET, PATHS), OPTIONS, NAMES), st.text("0123456789.:[]@=,/abunix", max_size=20)
)


@settings(max_examples=600, deadline=None)
@given(BINDS)
@example("0.0.0.0:443,shards=4,backlog=8192=web")
@example("[::1]:80,backlog=1,backlog=2")
@example("[::1]:80,backlog=0")
@example("[::1]:80,shards=0")
@example("[::1]:80,shards=257")
@example("udp@[::1]:80,backlog=5")
@example("udp@[::1]:80,shards=2")
@example("unix@/run/a.sock,shards=2")
def test_a_bind_that_is_read_quickly_means_the_same_in_full(text: str) -> None:
    read = quick.bind(text)
    if read is not None:
        full = binds.parse(text)
        assert (full.name, full.slots) == read


#: Options of the command line but for -b: right ones and mistakes.
WORDS = (
    "-v|--verbose|--style systemd|--style=nginx|--style apache|--env A={web}|--env=A=b=c|--env =1|--env a|--owner x@y|"
    "--owner=l:0|--owner=a,b|--wait 1.5|--wait -1|--wait nan|--wait=3|--wait 1e3|--socket /x|--socket=|-h|--fish|"
    "-b|-v=1|-"
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(BINDS, max_size=2),
    st.lists(st.sampled_from([option.split() for option in WORDS.split("|")]), max_size=3),
    st.sampled_from([["--", "app", "-b", "x"], ["app", "--", "x"], ["--"], [], ["--", "-app"], ["--", ""]]),
)
def test_a_command_line_that_is_read_quickly_means_the_same_in_full(
    binds_: list[str], options: list[list[str]], command: list[str]
) -> None:
    words = [*(word for text in binds_ for word in ("-b", text)), *(word for option in options for word in option)]
    read = quick.read([*words, *command], {"MULTIBINDER_SOCK": "/run/a.sock"})
    if read is not None:
        assert read == fully([*words, *command])


@pytest.mark.parametrize(
    "arguments",
    [
        ["-b", "0.0.0.0:8000", "--", "gunicorn", "app:app"],
        ["-b", "[::]:8000,backlog=8192=web", "--", "uvicorn", "--fd", "{web}", "app:app"],
        ["-b", "0.0.0.0:443,shards=4,backlog=8192", "nginx", "-g", "daemon off;"],
        ["-v", "-b", "unix@/run/app.sock=app", "--bind", "udp@0.0.0.0:53", "--style", "stdin", "--wait", "0", "app"],
        ["-b", "127.0.0.1:80=a", "--env=A={a}", "--env", "B=", "--owner", "web", "--socket", "/run/b.sock", "app"],
    ],
)
def test_usual_command_lines_are_read_quickly(arguments: list[str]) -> None:
    read = quick.read(arguments, {"MULTIBINDER_SOCK": "/run/a.sock"})
    assert read is not None
    assert read == fully(arguments)


@pytest.mark.parametrize(
    "texts", [["127.0.0.1:80=a", "127.0.0.1:81=a"], ["127.0.0.1:80", "127.0.0.1:80"], ["[::1]:80", "[0::1]:80"]]
)
def test_the_same_twice_is_left_to_the_full_parser(texts: list[str]) -> None:
    words = [word for text in texts for word in ("-b", text)]
    assert quick.read([*words, "app"], {"MULTIBINDER_SOCK": "/run/a.sock"}) is None
    with pytest.raises(AddressError):
        binds.parse_all(texts)


@pytest.mark.parametrize("program", ["gunicorn", "/usr/sbin/nginx", "a b", "ä", "", "x" * 200])
def test_the_usual_owner_is_a_label(program: str) -> None:
    assert check_label("owner", usual_owner([program])).startswith("exec@")


@pytest.mark.parametrize(
    ("command", "owner"),
    [("/usr/bin/gunicorn app", "exec@gunicorn"), ("python3 -m gunicorn app", "exec@gunicorn"),
     ("php-fpm8.2 -F", "exec@php-fpm"), ("python3 -c 1", "exec@python3")],
)  # fmt: skip
def test_the_usual_owner_stays_the_same_with_another_interpreter_or_version(command: str, owner: str) -> None:
    assert usual_owner(command.split()) == owner


def test_what_is_imported_for_a_usual_start_is_of_the_standard_library_and_quick_to_import() -> None:
    slow = (
        "typing",
        "dataclasses",
        "inspect",
        "ast",
        "logging",
        "subprocess",
        "asyncio",
        "threading",
        "tempfile",
        "pathlib",
    )
    code = (
        "import json, socket, sys; before = {*sys.modules};"
        "from multibinder.cli import become, entry; from multibinder.launch.exec import quick;"
        "from multibinder.kernel import std_descriptors;"
        "print(*sorted({*sys.modules} - before))"
    )
    loaded = subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split()
    foreign = {name.partition(".")[0] for name in loaded} - {"multibinder"} - sys.stdlib_module_names
    assert foreign == set()
    assert [name for name in loaded if name in slow] == []
    assert [
        name for name in loaded if name.startswith(("multibinder.wire", "multibinder.api", "multibinder.cli.main"))
    ] == []
