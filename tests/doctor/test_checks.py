"""Each check finds the problems in given facts, and reports nothing about healthy ones."""

from __future__ import annotations

import pathlib
import socket
from typing import Any

import msgspec
import pytest

from multibinder import TcpAddress
from multibinder.kernel.socket_options import cookie_of
from multibinder.observe import instances
from multibinder.observe.doctor import (
    backlog,
    control,
    installation,
    keeper,
    limits,
    losses,
    mss,
    orphans,
    owners,
    reuseport,
    runs,
    shards,
    unix_paths,
)
from multibinder.observe.doctor.checks import diagnose
from multibinder.observe.doctor.facts import (
    Binder,
    BinderListener,
    Descriptors,
    Facts,
    FileMode,
    Instance,
    Keeper,
    Namespace,
    Unit,
)
from multibinder.observe.doctor.finding import Finding
from multibinder.observe.holders import Holder, Holders, Process
from multibinder.observe.sock_diag import ListeningSocket, Path
from multibinder.wire.instance_summary import InstanceSummary, SourceFile

ADDRESS = TcpAddress.of("192.0.2.1", 80)
SYSCTLS = {"net.core.somaxconn": 4096, "net.ipv4.tcp_syncookies": 1, "net.ipv4.tcp_max_syn_backlog": 1024}
HEALTHY = ListeningSocket(ADDRESS, inode=7, cookie=70, user=0, interface=0, queue=0, limit=4096, drops=0)
LISTENER = BinderListener(str(ADDRESS), cookie=70, owners=("haproxy@web",), backlog=4096, requested=None)
WORKER = Holder(9, "haproxy", "accepting")


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def facts(
    sock: ListeningSocket = HEALTHY, held: BinderListener = LISTENER, *others: ListeningSocket, **fields: Any
) -> Facts:
    """Return facts about a healthy host with one listener in one namespace, with the changes of the test."""
    namespace = {name: fields.pop(name) for name in ("sysctls", "counters", "paths", "pid") if name in fields}
    space = {"sysctls": SYSCTLS, "counters": {}, "pid": None, **namespace}
    return Facts(
        version="1.0",
        **{
            "namespaces": (Namespace(number=1, sockets=(sock, *others), **space),),
            "binder": Binder(1000, "1.0", (held,)),
            "holders": Holders({7: (WORKER,)}, hidden=False),
            "control": (
                FileMode("/run/mb/control.sock", 0o660, 0),
                FileMode("/run/mb", 0o755, 0),
                FileMode("/run", 0o755, 0),
            ),
            "keeper": Keeper("guard"),
            **fields,
        },
    )


def one(found: Any) -> Finding:
    [finding] = found
    assert isinstance(finding, Finding)
    assert all(msgspec.structs.astuple(finding)), "every part of a finding has a text"
    assert "\n" not in finding.remedy
    return finding


def test_a_healthy_host_has_no_findings() -> None:
    assert diagnose(facts()) == []


def test_the_most_severe_finding_comes_first() -> None:
    sick = facts(
        changed(HEALTHY, queue=9, limit=8, drops=3),
        sysctls={**SYSCTLS, "net.core.somaxconn": 8},
        counters={"ListenDrops": 9},
    )
    levels = [finding.level for finding in diagnose(sick)]
    assert levels == ["problem", "warning", "note"]


def test_somaxconn_is_compared_with_what_is_asked_for_or_else_with_the_kernels_default() -> None:
    low = {**SYSCTLS, "net.core.somaxconn": 128}
    assert list(backlog.somaxconn(facts(held=changed(LISTENER, requested=128), sysctls=low))) == []
    assert "backlog of 129 " in one(backlog.somaxconn(facts(held=changed(LISTENER, requested=129), sysctls=low))).what
    assert "backlog of 4096 " in one(backlog.somaxconn(facts(sysctls=low))).what


def test_a_namespace_without_our_listeners_may_have_any_somaxconn() -> None:
    low = {**SYSCTLS, "net.core.somaxconn": 128}
    assert list(backlog.somaxconn(facts(changed(HEALTHY, cookie=71), sysctls=low))) == []
    assert one(backlog.somaxconn(facts(sysctls=low, binder=None))).where == "this network namespace"


def test_a_sysctl_that_cannot_be_read_is_not_judged() -> None:
    assert list(backlog.somaxconn(facts(sysctls={}))) == []


def test_a_queue_that_another_program_cut_is_distinguished_from_one_that_was_made_short() -> None:
    asked = changed(LISTENER, requested=1000, backlog=1000)
    cut = one(backlog.shorter_than_requested(facts(changed(HEALTHY, limit=100), asked)))
    assert "called listen()" in cut.why
    short = one(backlog.shorter_than_requested(facts(changed(HEALTHY, limit=100), changed(asked, backlog=100))))
    assert short.remedy == "systemctl restart multibinder-haproxy@web"
    assert list(backlog.shorter_than_requested(facts(changed(HEALTHY, limit=1000), asked))) == []


def test_drops_are_named_with_their_holder_and_their_number() -> None:
    finding = one(losses.overflow(facts(changed(HEALTHY, drops=42))))
    assert (finding.level, finding.where) == ("warning", "192.0.2.1:80 (this network namespace)")
    assert "42" in finding.what
    assert "haproxy (pid 9) (accepting)" in finding.why


def test_a_full_queue_without_an_accepting_process_is_a_problem_with_another_remedy() -> None:
    nobody = one(losses.overflow(facts(changed(HEALTHY, queue=9, limit=8), holders=Holders({}, hidden=False))))
    assert nobody.level == "problem"
    assert "multibinder release --all-owners '192.0.2.1:80'" in nobody.remedy
    asleep = Holders({7: (changed(WORKER, role="holding"),)}, hidden=False)
    assert "-p 9" in one(losses.overflow(facts(changed(HEALTHY, queue=9, limit=8), holders=asleep))).remedy


def test_a_listener_is_not_called_unheld_while_processes_are_hidden() -> None:
    finding = one(losses.overflow(facts(changed(HEALTHY, drops=1), holders=Holders({}, hidden=True))))
    assert "may not see the processes that hold it" in finding.why
    assert "release" not in finding.remedy


def test_a_queue_at_its_limit_is_not_full_yet() -> None:
    assert list(losses.overflow(facts(changed(HEALTHY, queue=8, limit=8)))) == []


def test_drops_of_an_unrelated_socket_are_a_note_when_a_binder_runs() -> None:
    stranger = changed(HEALTHY, inode=8, cookie=80, drops=5, address=TcpAddress.of("192.0.2.1", 22))
    assert one(losses.overflow(facts(HEALTHY, LISTENER, stranger))).level == "note"
    assert one(losses.overflow(facts(HEALTHY, LISTENER, stranger, binder=None))).level == "warning"


def test_drops_that_no_open_socket_counts_are_attributed_to_closed_ones() -> None:
    counters = {"ListenDrops": 10, "ListenOverflows": 10}
    found = list(losses.overflow(facts(changed(HEALTHY, drops=4), counters=counters)))
    assert [finding.what.split()[0] for finding in found] == ["dropped", "6"]
    assert len(list(losses.overflow(facts(changed(HEALTHY, drops=10), counters=counters)))) == 1


@pytest.mark.parametrize(
    ("counters", "sysctls", "check"),
    [
        ({"TCPReqQFullDoCookies": 3}, SYSCTLS, "syn-cookies"),
        ({"TCPReqQFullDrop": 3}, SYSCTLS, "syn-drops"),
        ({}, {**SYSCTLS, "net.ipv4.tcp_syncookies": 0}, "syn-cookies-off"),
    ],
)
def test_dropped_handshakes_are_reported(counters: dict[str, int], sysctls: dict[str, int], check: str) -> None:
    assert one(losses.syn(facts(counters=counters, sysctls=sysctls))).check == check


def test_a_remedy_for_another_namespace_can_be_run_from_this_one() -> None:
    off = {**SYSCTLS, "net.ipv4.tcp_syncookies": 0}
    finding = one(losses.syn(facts(sysctls=off, pid=1000)))
    assert finding.remedy == "nsenter -t 1000 -n sysctl -w net.ipv4.tcp_syncookies=1"


def test_a_backlog_is_judged_by_the_round_trips_of_its_own_clients() -> None:
    small = changed(HEALTHY, limit=100)
    paths = [Path(ADDRESS, 1500, 1460, trip) for trip in (10_000, 50_000, 900_000)]
    stranger = Path(TcpAddress.of("192.0.2.1", 81), 1500, 1460, 1)
    finding = one(losses.burst(facts(small, paths=(*paths, stranger))))
    assert (
        "50 ms of its clients (the median of 3), 100 places are full at 2,000 new connections a second" in finding.why
    )
    assert list(losses.burst(facts())) == []


def test_an_unrelated_socket_on_the_binders_address_is_a_problem() -> None:
    stranger = changed(HEALTHY, inode=8, cookie=80)
    holders = Holders({7: (WORKER,), 8: (Holder(20, "python3", "accepting"),)}, hidden=False)
    finding = one(reuseport.reuseport(facts(HEALTHY, LISTENER, stranger, holders=holders)))
    assert (finding.level, "python3 (pid 20)" in finding.what, "haproxy" in finding.what) == ("problem", True, False)


def sharded(*changes: dict[str, Any], holders: dict[int, tuple[int, ...]] | None = None) -> Facts:
    """Return facts about one address with a shard for each of ``changes``, which one process holds by default."""
    socks, held = [], []
    for number, fields in enumerate(changes):
        shard = fields.pop("shard", number)
        socks.append(
            changed(HEALTHY, **{"inode": 10 + number, "cookie": 100 + number, "user": 4_000_000_000, **fields})
        )
        held.append(changed(LISTENER, cookie=100 + number, shard=shard))
    by_inode = {
        sock.inode: tuple(Holder(pid, "haproxy", "accepting") for pid in (holders or {}).get(number, (9,)))
        for number, sock in enumerate(socks)
    }
    first, *others = socks
    return facts(
        first, held[0], *others, binder=Binder(1000, "1.0", tuple(held)), holders=Holders(by_inode, hidden=False)
    )


def test_healthy_shards_have_no_findings() -> None:
    assert diagnose(sharded({}, {}, {})) == []
    # Each process may have a shard of its own.
    assert diagnose(sharded({}, {}, {}, holders={0: (1,), 1: (2,), 2: (3,)})) == []


def test_uneven_shards_are_reported() -> None:
    assert "1 is missing" in one(shards.uneven_shards(sharded({}, {"shard": 2}))).what
    assert "backlogs: 8, 4096" in one(shards.uneven_shards(sharded({}, {"limit": 8}))).what
    assert "shard 1 is full" in one(shards.uneven_shards(sharded({}, {"queue": 4097}))).what


def test_a_shard_that_only_an_old_process_has_is_reported() -> None:
    abandoned = sharded({}, {}, {}, holders={0: (9, 5), 1: (9, 5), 2: (5,)})
    assert list(shards.abandoned_shards(sharded({}, {}))) == []
    assert list(shards.abandoned_shards(abandoned)) == []  # the old process has all of them
    alone = sharded({}, {}, {}, holders={0: (9,), 1: (9,), 2: (5,)})
    assert "shard 2 is held by pid 5 alone" in one(shards.abandoned_shards(alone)).what


def test_shards_that_another_program_of_root_can_join_are_reported() -> None:
    assert "belong to root" in one(shards.open_shards(sharded({"user": 0}, {}))).what
    assert list(shards.open_shards(sharded({"user": 998}, {"user": 998}))) == []


def test_sockets_on_different_interfaces_share_nothing() -> None:
    stranger = changed(HEALTHY, inode=8, cookie=80, interface=3)
    assert list(reuseport.reuseport(facts(HEALTHY, LISTENER, stranger))) == []


@pytest.mark.parametrize(
    ("second", "hidden", "user", "found"),
    [
        ((Holder(20, "b", "accepting"),), False, 0, 1),
        ((WORKER, Holder(20, "b", "accepting")), False, 0, 0),
        ((), True, 0, 0),
        ((), True, 1000, 1),
    ],
    ids=["apart", "a master has both", "hidden", "hidden, of another user"],
)
def test_without_a_binder_a_port_counts_as_shared_when_two_programs_have_it(
    second: tuple[Holder, ...], hidden: bool, user: int, found: int
) -> None:
    other = changed(HEALTHY, inode=8, cookie=80, user=user)
    holders = Holders({7: (WORKER,), 8: second}, hidden=hidden)
    seen = list(reuseport.reuseport(facts(HEALTHY, LISTENER, other, holders=holders, binder=None)))
    assert [finding.level for finding in seen] == ["warning"] * found


@pytest.mark.parametrize(
    ("host", "mtu", "announced", "found"),
    [
        ("192.0.2.1", 1500, 1460, 0),
        ("192.0.2.1", 1499, 1460, 1),
        ("2001:db8::1", 1500, 1440, 0),
        ("2001:db8::1", 1500, 1460, 1),
        ("::ffff:192.0.2.1", 1500, 1460, 0),
        ("192.0.2.1", 0, 1460, 0),
    ],
)
def test_an_announced_mss_must_fit_the_route(host: str, mtu: int, announced: int, found: int) -> None:
    address = TcpAddress.of("0.0.0.0" if "." in host and ":" not in host else "::", 80)
    sock, held = changed(HEALTHY, address=address), changed(LISTENER, address=str(address))
    path = Path(TcpAddress.of(host, 80), mtu, announced, 1000)
    assert len(list(mss.mss(facts(sock, held, paths=(path,))))) == found


@pytest.mark.parametrize(("opened", "level"), [(79, None), (80, "warning"), (95, "problem")])
def test_descriptors_are_reported_before_they_run_out(opened: int, level: str | None) -> None:
    found = list(limits.descriptors(facts(descriptors=(Descriptors(Process(9, "haproxy"), "x", opened, 100),))))
    assert [finding.level for finding in found] == [level] * bool(level)


@pytest.mark.parametrize(
    ("socket_mode", "directory_mode", "owner", "level"),
    [
        (0o660, 0o755, 0, None),
        (0o666, 0o755, 0, "problem"),
        (0o666, 0o750, 0, None),
        (0o660, 0o777, 0, "problem"),
        (0o660, 0o1777, 0, "warning"),
        (0o660, 0o755, 1000, "warning"),
    ],
)
def test_a_control_socket_that_is_too_open_is_reported(
    socket_mode: int, directory_mode: int, owner: int, level: str | None
) -> None:
    places = (
        FileMode("/run/mb/s", socket_mode, 0),
        FileMode("/run/mb", directory_mode, owner),
        FileMode("/", 0o755, 0),
    )
    found = list(control.control_socket(facts(control=places)))
    assert [finding.level for finding in found] == [level] * bool(level)


def test_a_sticky_directory_further_up_is_no_problem() -> None:
    places = (FileMode("/tmp/mb/s", 0o660, 0), FileMode("/tmp/mb", 0o700, 0), FileMode("/tmp", 0o1777, 0))
    assert list(control.control_socket(facts(control=places))) == []


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (Keeper("guard"), None),
        (Keeper("unknown"), None),
        (Keeper("none"), "warning"),
        (Keeper("systemd", "multibinder.service", 0, 0), "warning"),
        (Keeper("systemd", "multibinder.service", 100, 89), None),
        (Keeper("systemd", "multibinder.service", 100, 90), "warning"),
        (Keeper("systemd", "multibinder.service", 100, 100), "problem"),
        (Keeper("systemd", "multibinder.service", 100, 1, unit_changed=True), "warning"),
    ],
)
def test_a_missing_or_full_keeper_of_the_sockets_is_reported(found: Keeper, level: str | None) -> None:
    assert [finding.level for finding in keeper.keeper(facts(keeper=found))] == [level] * bool(level)


def test_listeners_that_the_keeper_does_not_have_are_reported() -> None:
    held = tuple(changed(LISTENER, address=f"192.0.2.{n}:80", kept=n > 6) for n in range(8))
    found = one(keeper.unkept(facts(binder=Binder(1000, "1.0", held))))
    assert (found.level, found.what) == ("warning", "7 of 8 listeners are not kept")
    assert found.where == "192.0.2.0:80, 192.0.2.1:80, 192.0.2.2:80, 192.0.2.3:80, 192.0.2.4:80 and 2 more"
    by_systemd = Keeper("systemd", "multibinder.service", 100, 1)
    assert one(keeper.unkept(facts(held=held[0], keeper=by_systemd))).remedy.startswith("systemctl edit multibinder")
    for nothing in (
        facts(held=changed(LISTENER, kept=True)),
        facts(),  # a binder that does not say
        facts(held=held[0], keeper=Keeper("none")),  # another finding says that nothing is kept
        facts(held=held[0], keeper=Keeper("systemd", "multibinder.service", 0, 0)),
    ):
        assert list(keeper.unkept(nothing)) == []


def test_a_listener_with_several_owners_is_reported_unless_one_is_a_socket_unit() -> None:
    found = one(owners.several_owners(facts(held=changed(LISTENER, owners=("haproxy@web", "haproxy@api")))))
    assert (found.level, found.where) == ("warning", "192.0.2.1:80")
    assert found.what == "2 owners have bound one address: haproxy@web, haproxy@api"
    for names in (("haproxy@web",), ("inherited", "haproxy@web"), ("inherited:0", "haproxy@web:107")):
        assert list(owners.several_owners(facts(held=changed(LISTENER, owners=names)))) == []


def test_the_remedy_for_an_older_binder_is_an_upgrade_in_place() -> None:
    assert one(installation.version(facts(binder=Binder(1000, "0.9", ())))).remedy == "multibinder upgrade"
    assert list(installation.version(facts())) == []


def test_older_units_are_found_and_those_changed_by_hand_are_not() -> None:
    units = (Unit("/a", "unchanged"), Unit("/b", "outdated"), Unit("/c", "changed"), Unit("/d", "absent"))
    assert one(installation.units(facts(units=units))).where == "/b"


def test_instances_with_another_configuration_on_disk_are_found() -> None:
    instances = (Instance("web", ("/etc/a", "/etc/b")), Instance("api", ()), Instance("old", None))
    finding = one(installation.instances(facts(instances=instances)))
    assert "/etc/a, /etc/b" in finding.what
    assert finding.remedy == "multibinder-haproxy check web && multibinder-haproxy reload web"


def test_a_listener_without_a_holder_is_an_orphan_and_more_severe_with_clients() -> None:
    nobody = Holders({}, hidden=False)
    quiet = one(orphans.orphans(facts(holders=nobody)))
    assert (quiet.level, quiet.what) == ("warning", "no process but the binder has it open; no client waits yet")
    busy = one(orphans.orphans(facts(changed(HEALTHY, queue=3), holders=nobody)))
    assert (busy.level, busy.where) == ("problem", "192.0.2.1:80 (this network namespace), owners: haproxy@web")
    assert busy.remedy.endswith("multibinder release --all-owners '192.0.2.1:80'")


def test_a_path_that_does_not_lead_to_its_socket_is_a_problem(tmp_path: pathlib.Path) -> None:
    lost, kept, stranger = (f"unix@{tmp_path}/{name}" for name in ("lost", "kept", "stranger"))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(f"{tmp_path}/lost")
        second.bind(f"{tmp_path}/kept")
        (tmp_path / "lost").rename(tmp_path / "elsewhere")
        held = (
            changed(LISTENER, address=lost, cookie=cookie_of(first)),
            changed(LISTENER, address=kept, cookie=cookie_of(second)),
            changed(LISTENER, address=stranger, cookie=1),
            LISTENER,
        )
        assert unix_paths.read_lost_paths(Binder(1000, "1.0", held), []) == (lost,)
    [finding] = unix_paths.lost_paths(facts(lost_paths=(lost,)))
    assert (finding.level, finding.where) == ("problem", lost)
    assert finding.remedy.startswith(f"ls -l {tmp_path}/lost;")
    assert not list(unix_paths.lost_paths(facts()))


def test_nothing_is_called_an_orphan_that_has_a_holder_or_may_have_one() -> None:
    assert [*orphans.orphans(facts())] == []
    assert [*orphans.orphans(facts(holders=Holders({}, hidden=True)))] == []


def of_run(up: bool, ready: int, *, changed_files: bool = False, **fields: Any) -> Facts:
    """Return facts about a host with one instance of ``run`` that should have two copies."""
    summary = changed(
        InstanceSummary.of_new_instance("web"), **{"driver": "run", "state": "running", "wanted": 2, **fields}
    )
    return facts(runs=(instances.Instance("web", summary, "", up, ready, 0, changed_files, "run"),))


@pytest.mark.parametrize(
    ("found", "check", "level"),
    [
        (of_run(up=True, ready=1), "run-copies", "warning"),
        (of_run(up=True, ready=0), "run-copies", "problem"),
        (of_run(up=True, ready=0, gave_up=True), "run-gave-up", "problem"),
        (of_run(up=True, ready=2, activity="canary"), "run-canary", "note"),
        (of_run(up=False, ready=2), "run-alone", "warning"),
        (of_run(up=False, ready=0), "run-dead", "problem"),
        (
            of_run(up=True, ready=2, changed_files=True, sources=[SourceFile("/etc/web.toml", 1, 1, 1)]),
            "run-config",
            "warning",
        ),
    ],
)
def test_an_instance_of_run_that_is_not_as_it_should_be_is_reported(found: Facts, check: str, level: str) -> None:
    (finding,) = runs.runs(found)
    assert (finding.check, finding.level) == (check, level)
    assert "web" in finding.remedy


@pytest.mark.parametrize(
    "found", [of_run(up=True, ready=2), of_run(up=False, ready=0, state="stopped"), of_run(True, 1, state="reloading")]
)
def test_an_instance_of_run_that_is_as_it_should_be_is_not_reported(found: Facts) -> None:
    assert list(runs.runs(found)) == []
