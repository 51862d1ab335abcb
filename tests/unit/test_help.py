"""``help(multibinder)`` reads in five minutes: what is inherited from socket or from exceptions does not drown it."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import multibinder


def help_of(thing: object) -> list[str]:
    return pydoc.plain(pydoc.render_doc(thing)).splitlines()


def test_help_of_the_package_is_read_in_five_minutes() -> None:
    lines = help_of(multibinder)
    # From 3.13 on, a long signature has a line for each argument. With every class, there were 2,800 lines.
    assert len(lines) <= 330
    assert len(" ".join(lines).split()) <= 2200
    assert len((multibinder.__doc__ or "").splitlines()) <= 60, "the summary, which is read first"
    assert [line.strip() for line in lines if "inherited from" in line] == []
    first_screen = "\n".join(lines[:25])
    for name in ("bind", "bind_many", "release", "sync", "Client"):
        assert f"    {name} " in first_screen


def test_help_of_the_package_leads_to_every_class() -> None:
    parts = {"OwnerStatus", "HolderStatus", "Counters", "DescriptorsLost"}  # of those that it names
    classes = {name for name, value in vars(multibinder).items() if isinstance(value, type)}
    assert parts < classes
    assert {name for name in classes - parts if name not in (multibinder.__doc__ or "")} == set()


def test_help_of_a_listener_begins_with_what_is_ours() -> None:
    lines = help_of(multibinder.SharedListener)
    ours = lines[: next(number for number, line in enumerate(lines) if "inherited from socket" in line)]
    assert len(ours) <= 150
    assert not any(line.startswith(" |  sendall(") for line in ours)
    assert any(line.startswith(" |  accept(") for line in ours)
    docstring = "\n".join(ours[: next(number for number, line in enumerate(ours) if "Method resolution" in line)])
    for word in ("close()", "accept()"):
        assert word in docstring


def test_a_name_that_help_leaves_out_is_still_there_for_type_checkers_and_in_dir() -> None:
    assert {*multibinder.__all__} < {*dir(multibinder)}
    assert "BindError" in dir(multibinder)


def test_an_import_of_the_library_loads_no_more_of_the_standard_library_than_it_needs() -> None:
    """Each of these takes a millisecond or more, and a program that only accepts has no use for it."""
    unwanted = {"asyncio", "ctypes", "logging", "ssl", "subprocess", "threading"}
    code = f"import sys, multibinder; print(*{unwanted} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split() == []
