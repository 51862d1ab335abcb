from __future__ import annotations

import pytest
from multibinder_haproxy import arguments
from multibinder_haproxy.arguments import Argument
from multibinder_haproxy.reexec.environment import operators

from multibinder.launch.errors import UsageError
from multibinder.launch.instance_files import check_name

LINE = [
    "-sf",
    "12",
    "13",
    "-x",
    "sockpair@5",
    "-Ws",
    "-dM",
    "-f",
    "a.cfg.j2",
    "-C",
    "/etc",
    "-p",
    "/run/x.pid",
    "-S",
    "/run/m.sock,level,admin",
    "--",
    "b.cfg",
    "c.cfg",
]


def test_parse_and_join_are_inverses() -> None:
    assert arguments.join(arguments.parse(LINE)) == LINE


def test_the_workers_to_replace_and_the_files_are_found() -> None:
    parsed = arguments.parse(LINE)
    assert arguments.old_workers(parsed) == [12, 13]
    assert [argument.values[0] for argument in parsed if argument.names_config] == ["a.cfg.j2", "b.cfg", "c.cfg"]
    assert arguments.working_directory(parsed) == "/etc"
    assert arguments.master_socket(parsed) == "/run/m.sock"


def test_a_check_keeps_the_mode_and_touches_no_running_process() -> None:
    assert arguments.join(arguments.for_check(arguments.parse(LINE))) == (
        ["-c", "-V", "-Ws", "-dM", "-f", "a.cfg.j2", "-C", "/etc", "--", "b.cfg", "c.cfg"]
    )


@pytest.mark.parametrize("flag", ["-f", "-C", "-S", "-n"])
def test_an_option_without_its_value_is_named(flag: str) -> None:
    with pytest.raises(UsageError, match=f"option {flag} needs a value"):
        arguments.parse(["-W", flag])


def test_a_master_cli_that_is_not_a_unix_socket_is_refused() -> None:
    with pytest.raises(UsageError, match="Unix socket"):
        arguments.master_socket([Argument("-S", ("127.0.0.1:999",))])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 65, "é"])
def test_a_name_that_could_not_be_a_file_or_a_label_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no instance name"):
        check_name(name)


def test_the_environment_is_that_of_the_operator_again() -> None:
    haproxys = {
        "HAPROXY_MWORKER_REEXEC": "1",
        "HAPROXY_MWORKER_WAIT_ONLY": "1",
        "HAPROXY_PROCESSES": "|",
        "HAPROXY_CLI": "x",
    }
    ours = {"MULTIBINDER_HAPROXY": "{}", "MULTIBINDER_PYTHON": "/p", "MULTIBINDER_PROGRAM": "/h"}
    theirs = {"PATH": "/bin", "HAPROXY_PORT": "80", "MULTIBINDER_SOCK": "/x"}
    assert operators({**haproxys, **ours, **theirs}) == theirs
