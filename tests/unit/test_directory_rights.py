from __future__ import annotations

import os
from pathlib import Path

import pytest

from multibinder.kernel.directory_rights import may_create_in, may_replace_in, redirectable
from tests.support import require

UID, GID = 4242, 4343


@pytest.fixture
def root() -> None:
    require("root", os.geteuid() == 0, "directories of other users need root")


def made(path: Path, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, gid)
    return path


@pytest.fixture
def place(root: None, tmp_path: Path) -> Path:
    for each in (tmp_path, *tmp_path.parents):  # pytest's own directories have the mode 0700
        if each == tmp_path or each.name.startswith(("pytest-", "popen-")):
            each.chmod(0o755)
    return tmp_path


def test_a_directory_below_those_of_root_is_the_same_at_every_moment(place: Path) -> None:
    assert redirectable(str(made(place / "a", 0o777, UID))) is None
    os.symlink(place / "a", place / "link")
    assert redirectable(str(place / "link")) is None


def test_a_directory_whose_parent_another_user_writes_can_become_another_one(place: Path) -> None:
    a = made(place / "a", uid=UID)
    b = made(a / "b")
    assert redirectable(str(b)) == str(a)
    group = made(place / "group", 0o775, gid=GID)
    assert redirectable(str(made(group / "b"))) == str(group)


def test_in_a_sticky_directory_only_directories_of_root_are_safe(place: Path) -> None:
    sticky = made(place / "tmp", 0o1777)
    assert redirectable(str(sticky)) is None
    assert redirectable(str(made(sticky / "root"))) is None
    assert redirectable(str(made(sticky / "user", uid=UID))) == str(sticky / "user")


def test_a_link_of_another_user_can_lead_elsewhere(place: Path) -> None:
    os.symlink(made(place / "a"), place / "link")
    os.lchown(place / "link", UID, GID)
    assert redirectable(str(place / "link")) == str(place / "link")


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "may"),
    [
        (0o755, UID, 0, True),
        (0o577, UID, 0, False),
        (0o775, 0, GID, True),
        (0o757, 0, GID, False),
        (0o755, 0, GID, False),
        (0o777, 0, 0, True),
        (0o1777, 0, 0, True),
        (0o776, 0, 0, False),
        (0o755, 0, 0, False),
    ],
)
def test_who_may_create_files_is_told_as_the_kernel_decides(
    place: Path, mode: int, uid: int, gid: int, may: bool
) -> None:
    directory = made(place / "a", mode, uid, gid)
    assert may_create_in(str(directory), UID, {GID}) == may
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(GID)
            os.setuid(UID)
            (directory / "x").touch()
            os._exit(0)
        except OSError:
            os._exit(1)
    assert (os.waitpid(child, 0)[1] == 0) == may


def test_a_directory_that_cannot_be_reached_is_no_place_for_files(place: Path) -> None:
    closed = made(place / "a", 0o700)
    assert not may_create_in(str(made(closed / "b", 0o777)), UID, {GID})


def test_in_a_sticky_directory_files_are_their_owners(place: Path) -> None:
    assert not may_replace_in(str(made(place / "a", 0o1777)), UID)
    assert may_replace_in(str(made(place / "b", 0o1777, UID)), UID)
    assert may_replace_in(str(made(place / "c", 0o777)), UID)
