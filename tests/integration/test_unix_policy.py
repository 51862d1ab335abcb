"""A second user gets no path and no abstract name that no rule grants, and none that it could not bind itself."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# Hypothesis is a development tool: without it, these tests are skipped.
hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from multibinder import Address, Client, ListenerSpec, MultibinderError  # noqa: E402
from tests.support import Binder  # noqa: E402
from tests.support.stranger import Stranger, Told  # noqa: E402

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


class Tree(NamedTuple):
    """A binder with a policy, a stranger, and directories with links that lead away."""

    stranger: Stranger
    socket_path: Path
    place: Path
    counts: dict[bool, int]


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(prefix="mb-") as name, contextlib.ExitStack() as stack:
        place = Path(name)
        place.chmod(0o755)
        for each in ("web", "website", "secret"):
            directory(place / each)
        (place / "way").symlink_to("web")
        (place / "web" / "out").symlink_to("../secret")
        directory(place / "web" / "deep")
        policy = place / "policy.toml"
        policy.write_text(RULES.format(uid=UID, place=os.path.realpath(place)))
        policy.chmod(0o644)
        binder = stack.enter_context(Binder(place, "--policy", str(policy), "--max-rate-per-uid", "1000000"))
        binder.wait_until_ready()
        os.chmod(binder.socket_path, 0o666)
        stranger = stack.enter_context(Stranger(UID, binder.socket_path))
        yield Tree(stranger, binder.socket_path, place, {True: 0, False: 0})


DIRECTORIES = ("web", "web", "website", "secret", "way", "way/out", "web/out", "web/deep", "web/out/../../web", ".")
names = st.sampled_from(["a", "one", ".a.multibinder", "web", "out", "deep"])
paths = st.tuples(st.sampled_from(["unix@", "uxst@", "", "uxdg@", "unixseq@"]), st.sampled_from(DIRECTORIES), names)
abstract = st.tuples(st.sampled_from(["abns@", "abnsz@"]), st.sampled_from(["web-1", "web", "we", "other", "Web-1"]))


@settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.booleans(), st.one_of(paths, abstract)), min_size=2, max_size=8))
def test_no_sequence_of_binds_gives_a_path_or_a_name_that_no_rule_grants(
    tree: Tree, steps: list[tuple[bool, tuple[str, ...]]]
) -> None:
    for is_root, (prefix, *rest) in steps:
        endpoint = f"{prefix}{tree.place}/{rest[0]}/{rest[1]}" if len(rest) == 2 else f"{prefix}{rest[0]}-{os.getpid()}"
        if is_root:
            with contextlib.suppress(MultibinderError), Client(tree.socket_path) as client:
                client.bind([ListenerSpec(Address.parse(endpoint))])[0].close()
            continue
        told = tree.stranger.ask("bind", {"endpoint": endpoint})
        tree.counts[bool(told.received)] += 1
        for got in told.received:
            if got.host.startswith("/"):
                where, name = os.path.split(got.host)
                real = f"{os.path.realpath(where)}/{name}"
                assert real.startswith(f"{tree.place}/web/") or real == f"{tree.place}/one", real
            else:
                assert got.host.startswith("\0web-"), got.host


def test_those_binds_had_both_grants_and_refusals(tree: Tree) -> None:
    """Without both, the test above would prove nothing. Runs after it, on the same binder."""
    if not any(tree.counts.values()):
        pytest.skip("the sequences have not run")
    assert min(tree.counts.values()) > 20
