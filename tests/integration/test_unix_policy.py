"""A second user gets no path and no abstract name that no rule grants, and none that it could not bind itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, Client, ListenerSpec
from tests.support import Binder
from tests.support.stranger import Stranger, Told

UID = 4242


@pytest.fixture
def place(run_dir: Path) -> Path:
    """Return a directory of root, in directories of root."""
    for each in (run_dir, *run_dir.parents):
        if each.stat().st_mode & 0o1005 == 0:
            each.chmod(0o755)
    place = run_dir / "place"
    place.mkdir(mode=0o755)
    return place


@pytest.fixture
def binder(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir) as binder:
        binder.wait_until_ready()
        os.chmod(binder.socket_path, 0o666)
        yield binder


@pytest.fixture
def stranger(binder: Binder) -> Iterator[Stranger]:
    with Stranger(UID, binder.socket_path) as stranger:
        yield stranger


def directory(path: Path, mode: int = 0o755, uid: int = 0) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


def bind(stranger: Stranger, endpoint: str, **options: object) -> Told:
    told = stranger.ask("bind", {"endpoint": endpoint, **options})
    assert ("error" in told.reply) == (not told.received)
    return told


def test_without_a_policy_a_user_binds_only_the_paths_that_it_could_make_itself(
    stranger: Stranger, place: Path
) -> None:
    own = directory(place / "own", uid=UID)
    sticky = directory(place / "tmp", 0o1777)
    assert bind(stranger, f"unix@{own}/a").received
    assert bind(stranger, f"uxdg@{sticky}/a").received
    assert bind(stranger, f"abns@mb-{os.getpid()}").received
    assert "it may not create files in" in bind(stranger, f"unix@{place}/a").refusal
    assert "there is no directory" in bind(stranger, f"unix@{place}/none/a").refusal
    assert "could replace" in bind(stranger, f"unix@{directory(own / 'deep', uid=UID)}/a").refusal
    assert "another user or group" in bind(stranger, f"unix@{own}/b", user=0).refusal
    # A link is no way around.
    (own / "out").symlink_to(place)
    os.lchown(own / "out", UID, UID)
    assert "Not allowed" in bind(stranger, f"unix@{own}/out/a").refusal
    assert sorted(os.listdir(place)) == ["own", "tmp"]


def test_without_a_policy_no_user_gets_the_listener_of_another_one_in_a_sticky_directory(
    binder: Binder, stranger: Stranger, place: Path
) -> None:
    address = Address.parse(f"unix@{directory(place / 'tmp', 0o1777)}/a")
    with Client(binder.socket_path) as client:
        client.bind([ListenerSpec(address)])[0].close()
    assert "are their owners'" in bind(stranger, str(address)).refusal


def test_without_a_policy_a_container_gets_no_path(binder: Binder, place: Path) -> None:
    open_to_all = directory(place / "open", 0o777)
    with Stranger(0, binder.socket_path, contained=True) as guest:
        assert "may bind no path" in bind(guest, f"unix@{open_to_all}/a").refusal


RULES = """
[[rule]]
uid = {uid}
allow = ["bind", "release"]
address = ["unix@{place}/web/", "unix@{place}/one", "abns@web-*"]
"""


def test_a_rule_grants_real_paths_and_names_and_nothing_else(place: Path) -> None:
    web = directory(place / "web", 0o777, UID)
    directory(place / "website")
    secret = directory(place / "secret")
    (place / "way").symlink_to(web)
    (web / "out").symlink_to(secret)
    os.lchown(web / "out", UID, UID)
    policy = place.parent / "policy.toml"
    policy.write_text(RULES.format(uid=UID, place=os.path.realpath(place)))
    policy.chmod(0o644)
    with Binder(place.parent, "--policy", str(policy)) as binder, Stranger(UID, binder.socket_path) as stranger:
        binder.wait_until_ready()
        os.chmod(binder.socket_path, 0o666)
        for granted in (f"unix@{web}/a", f"uxdg@{web}/b", f"unixseq@{place}/one", f"unix@{place}/way/c", "abns@web-1"):
            assert bind(stranger, granted).received, granted
        for refused in (
            f"unix@{place}/website/a",
            f"unix@{place}/two",
            f"unix@{web}",
            f"unix@{web}/out/a",
            f"unix@{secret}/a",
            "abns@other",
            "abnsz@we",
        ):
            assert "Not allowed" in bind(stranger, refused).refusal, refused
        # Its owner could lead the path out of the directory between the decision and the bind.
        deep = directory(web / "deep", uid=UID)
        assert "could replace" in bind(stranger, f"unix@{deep}/a").refusal
    assert os.listdir(secret) == []
