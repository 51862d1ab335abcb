from __future__ import annotations

from pathlib import Path

import pytest
from multibinder_haproxy.errors import HaproxyTooOld
from multibinder_haproxy.version import refuse_too_old, was_replaced_since


def says(directory: Path, first_line: str) -> str:
    program = directory / "haproxy"
    program.write_text(f"#!/bin/sh\necho '{first_line}'\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    "line", ["HA-Proxy version 1.9.0 2018/12/19 - https://haproxy.org/", "HA-Proxy version 1.8.19-1+deb10u3 2020/04/01"]
)
def test_a_haproxy_whose_master_cannot_be_asked_is_refused_with_its_version(tmp_path: Path, line: str) -> None:
    program = says(tmp_path, line)
    with pytest.raises(
        HaproxyTooOld, match=r"/haproxy is HAProxy 1\.[89]\.\S+, which is too old: 2\.0 or later is needed"
    ):
        refuse_too_old(program)


@pytest.mark.parametrize(
    "line",
    [
        "HA-Proxy version 2.0.0 2019/06/16 - https://haproxy.org/",
        "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
        "HAProxy version 3.5-dev5-03bde20ef 2026/08/21 - https://haproxy.org/",
        "HAProxy version 10.0.0",
        "something else",
        "",
    ],
)
def test_later_versions_and_programs_that_do_not_say_theirs_are_run(tmp_path: Path, line: str) -> None:
    refuse_too_old(says(tmp_path, line))


def test_a_program_that_is_not_there_is_left_to_the_check_of_the_configuration(tmp_path: Path) -> None:
    refuse_too_old(str(tmp_path / "none"))


def test_a_program_is_asked_again_only_after_it_was_replaced(tmp_path: Path) -> None:
    program = says(tmp_path, "HAProxy version 3.2.0")
    changed = Path(program).stat().st_ctime
    assert was_replaced_since(program, changed - 1)
    assert not was_replaced_since(program, changed + 1)
    assert was_replaced_since(str(tmp_path / "none"), changed)
