"""Directories are trusted by their owner and mode, and files are replaced atomically."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from multibinder.kernel import files
from tests.support import descriptors_unchanged, require

STRANGER = 4242


def reasons(directory: Path) -> list[tuple[str, str]]:
    return [(distrust.path, distrust.reason) for distrust in files.reasons_for_distrust(str(directory))]


def test_a_directory_of_our_own_is_trusted(run_dir: Path) -> None:
    assert reasons(run_dir) == []


@pytest.mark.parametrize(("mode", "reason"), [(0o777, "others"), (0o770, "group"), (0o1777, "others")])
def test_the_sticky_bit_does_not_excuse_the_last_directory(run_dir: Path, mode: int, reason: str) -> None:
    run_dir.chmod(mode)
    assert reasons(run_dir) == [(str(run_dir), reason)]


@pytest.mark.parametrize(("mode", "reason"), [(0o777, "others"), (0o775, "group"), (0o1777, None), (0o1775, None)])
def test_the_sticky_bit_excuses_a_directory_on_the_way(run_dir: Path, mode: int, reason: str | None) -> None:
    (run_dir / "own").mkdir(mode=0o755)
    run_dir.chmod(mode)
    assert reasons(run_dir / "own") == ([(str(run_dir), reason)] if reason else [])


def test_the_last_directory_of_a_path_with_dots_is_the_one_that_it_resolves_to(run_dir: Path) -> None:
    (run_dir / "own").mkdir()
    run_dir.chmod(0o1777)
    assert reasons(run_dir / "own" / "..") == [(str(run_dir), "others")]


def test_directories_and_links_of_other_users_are_not_trusted(run_dir: Path) -> None:
    require("root", os.geteuid() == 0, "only root can give a file away")
    (run_dir / "theirs").mkdir()
    (run_dir / "link").symlink_to("own")
    (run_dir / "own").mkdir()
    os.chown(run_dir / "theirs", STRANGER, STRANGER)
    os.lchown(run_dir / "link", STRANGER, STRANGER)
    assert reasons(run_dir / "theirs") == [(str(run_dir / "theirs"), "owner")]
    assert reasons(run_dir / "link") == [(str(run_dir / "link"), "link")]


def test_a_directory_of_an_unmapped_user_is_not_trusted(run_dir: Path) -> None:
    require("root", os.geteuid() == 0, "only root can give a file away")
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    os.chown(run_dir, overflow, 0)
    assert reasons(run_dir) == [(str(run_dir), "owner")]


def test_a_replaced_file_has_its_mode_under_any_umask_and_no_draft_is_left(run_dir: Path) -> None:
    path = run_dir / "file"
    path.write_text("old")
    before = os.umask(0o077)
    try:
        with descriptors_unchanged():
            files.replace(str(path), b"new", 0o644)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(run_dir) == ["file"]


def test_a_file_that_cannot_be_replaced_is_unchanged_and_no_draft_is_left(run_dir: Path) -> None:
    (run_dir / "file").mkdir()
    with descriptors_unchanged(), pytest.raises(IsADirectoryError):
        files.replace(str(run_dir / "file"), b"new")
    assert os.listdir(run_dir) == ["file"]


def test_a_descriptor_that_is_kept_open_writes_to_the_replaced_file(run_dir: Path) -> None:
    path = run_dir / "file"
    descriptor = files.replace_and_keep_open(str(path), b"first\n")
    try:
        files.write_all(descriptor, b"second\n")
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"first\nsecond\n"
