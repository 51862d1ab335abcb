"""A real binder with a policy decides about requests of real processes of other users."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import BindError, Client, ListenerSpec, Options, RequestError, TcpAddress
from multibinder.wire.status import OwnerStatus
from tests.conftest import StartBinder
from tests.support import Binder, identities, multibinder, require, serving_pid, wait_until
from tests.support.stranger import Stranger

UID, OTHER_UID = 4242, 4343
POLICY_REFUSES = 10003


class PolicyFile:
    """A policy file of root that a binder reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loads = 0

    def write(self, *rules: str) -> PolicyFile:
        self.path.write_text("\n".join(f"[[rule]]\n{rule}\n" for rule in rules))
        self.path.chmod(0o600)
        return self

    def reload(self, binder: Binder, event: str = "policy-reloaded") -> str:
        """Send SIGHUP to the binder, and return the line of its log with the outcome."""
        before = binder.log_path.read_text().count(f"event={event}")
        os.kill(serving_pid(binder.socket_path), signal.SIGHUP)

        def line() -> str | None:
            lines = [line for line in binder.log_path.read_text().splitlines() if f"event={event}" in line]
            return lines[-1] if len(lines) > before else None

        return wait_until(line, f"the log says {event} again", log=binder.log)


@pytest.fixture
def policy(run_dir: Path) -> PolicyFile:
    require("root", os.geteuid() == 0, "a second user needs root")
    run_dir.chmod(0o711)
    return PolicyFile(run_dir / "policy.toml").write()


@pytest.fixture
def governed(policy: PolicyFile, start_binder: StartBinder) -> Binder:
    return start_binder("--mode", "0666", "--policy", str(policy.path))


@pytest.fixture
def stranger(governed: Binder) -> Iterator[Stranger]:
    with Stranger(UID, governed.socket_path) as stranger:
        yield stranger


@pytest.fixture
def other(governed: Binder) -> Iterator[Stranger]:
    with Stranger(OTHER_UID, governed.socket_path) as other:
        yield other


def everything(*uids: int) -> str:
    return f'uid = {list(uids)}\nallow = "*"'


def test_denied_then_allowed_by_a_rule_then_denied_again(
    governed: Binder, policy: PolicyFile, stranger: Stranger, other: Stranger, host: str
) -> None:
    told = stranger.bind(host, 80)
    assert told.received == []
    assert told.reply["error"]["code"] == POLICY_REFUSES
    assert told.refusal.startswith(f"Not allowed to bind {host}:80: no rule of {policy.path} allows it (uid {UID}")
    assert told.refusal.endswith("); see 'multibinder policy check'")
    policy.write(f'uid = {UID}\nallow = "bind"\naddress = "{host}:80"')
    assert "rules=1" in policy.reload(governed)
    assert stranger.bind(host, 80).addresses == [f"{host}:80"]
    assert stranger.bind(host, 81).received == []
    assert other.bind(host, 80).received == []
    policy.write(f'name = "not any more"\nuid = {UID}\ndeny = "bind"')
    policy.reload(governed)
    told = stranger.bind(host, 80)
    assert told.received == []
    assert f'denied by rule 1 ("not any more") of {policy.path}' in told.refusal
    assert told.reply["error"]["data"]["rule"] == 1
    with Client(governed.socket_path) as root:  # root needs no rule
        root.bind([(host, 80)])[0].close()


def test_a_refusal_is_counted_and_logged_with_its_user(governed: Binder, stranger: Stranger, host: str) -> None:
    stranger.bind(host, 80)
    line = governed.wait_for_log("event=refused")
    comm = Path(f"/proc/{stranger.pid}/comm").read_text().strip()
    for field in (f"uid={UID}", f"pid={stranger.pid}", f"command={comm}", "method=bind", "no rule of"):
        assert field in line
    with Client(governed.socket_path) as root:
        status = root.status()
    assert status.counters.refusals == {"policy": 1}
    assert (status.listeners, status.counters.handoffs) == ([], 0)


def test_a_supplementary_group_is_enough(policy: PolicyFile, governed: Binder, host: str) -> None:
    policy.write(f'gid = 5151\nallow = "bind"\naddress = "{host}:*"')
    policy.reload(governed)
    with Stranger(UID, governed.socket_path, groups=(5150, 5151)) as member:
        assert member.bind(host, 80).addresses == [f"{host}:80"]
    with Stranger(UID, governed.socket_path, groups=(5150,)) as stranger:
        assert stranger.bind(host, 80).received == []


@pytest.mark.parametrize("method", ["bind", "check", "release", "list", "status", "upgrade"])
def test_every_method_but_hello_asks_the_policy(governed: Binder, stranger: Stranger, host: str, method: str) -> None:
    params = [{"address": host, "port": 80}] if method in ("bind", "check", "release") else []
    assert stranger.ask(method, *params).reply["error"]["code"] == POLICY_REFUSES
    assert "result" in stranger.ask("hello").reply


def test_a_batch_is_allowed_as_a_whole_or_refused(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(f'uid = {UID}\nallow = "*"\naddress = "{host}:80"')
    policy.reload(governed)
    batch = [{"address": host, "port": port} for port in (80, 81)]
    for method in ("bind", "check", "release"):
        told = stranger.ask(method, *batch)
        assert (told.reply["error"]["code"], told.received) == (POLICY_REFUSES, [])
    assert identities(governed.socket_path) == []


BROKEN = [
    ("[[rule]]\nallow = 'everything'\n", 0o600, "there is no method 'everything'"),
    ("[[rule]\n", 0o600, "not TOML"),
    ("", 0o666, "others may write it"),
]


@pytest.mark.parametrize(("text", "mode", "why"), BROKEN)
def test_a_broken_policy_file_keeps_the_previous_policy_and_is_logged(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str, text: str, mode: int, why: str
) -> None:
    policy.write(f'uid = {UID}\nallow = "bind"\naddress = "{host}:80"')
    policy.reload(governed)
    policy.path.write_text(text)
    policy.path.chmod(mode)
    line = policy.reload(governed, "policy-broken")
    assert why in line
    assert "the previous policy stays in force" in line
    assert stranger.bind(host, 80).addresses == [f"{host}:80"]
    assert stranger.bind(host, 81).received == []


@pytest.mark.parametrize("instead", ["nothing", "fifo", "directory"])
def test_a_missing_or_blocking_policy_file_keeps_the_previous_policy(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str, instead: str
) -> None:
    policy.path.unlink()
    if instead == "fifo":
        os.mkfifo(policy.path, 0o600)
    elif instead == "directory":
        policy.path.mkdir()
    policy.reload(governed, "policy-broken")
    assert stranger.bind(host, 80).received == []
    with Client(governed.socket_path) as root:
        assert root.status().policy == str(policy.path)


@pytest.mark.parametrize("text", [None, "[[rule]\n"])
def test_a_binder_does_not_start_with_an_unusable_policy(run_dir: Path, policy: PolicyFile, text: str | None) -> None:
    policy.path.unlink() if text is None else policy.path.write_text(text)
    done = multibinder("serve", "--socket", run_dir / "mb.sock", "--policy", policy.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"multibinder: {policy.path}: ")
    assert done.stderr.count("\n") == 1
    assert not (run_dir / "mb.sock").exists()


def test_a_binder_that_has_listeners_comes_up_with_a_broken_policy_for_root_alone(
    policy: PolicyFile, start_binder: StartBinder, host: str
) -> None:
    policy.write(everything(UID))
    guard = start_binder("--guard", "--mode", "0666", "--policy", str(policy.path))
    with Stranger(UID, guard.socket_path) as stranger:
        assert stranger.bind(host, 80).addresses == [f"{host}:80"]
        before = identities(guard.socket_path)
        policy.path.write_text("[[rule]\n")
        pid = serving_pid(guard.socket_path)
        os.kill(pid, signal.SIGKILL)
        serving_pid(guard.socket_path, not_=pid)
        assert identities(guard.socket_path) == before
        assert "only root and this user may ask for anything" in guard.wait_for_log("event=policy-broken")
        assert stranger.bind(host, 80).received == []
        assert "error" in stranger.ask("release", {"address": host, "port": 80}).reply
        policy.write(everything(UID))
        policy.reload(guard)
        assert stranger.bind(host, 80).addresses == [f"{host}:80"]


def test_an_upgrade_to_a_binder_that_cannot_read_the_policy_is_refused(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(everything(UID))
    policy.reload(governed)
    for spoil, why in ((lambda: policy.path.write_text("[[rule]\n"), "not TOML"), (policy.path.unlink, "no such file")):
        spoil()
        with Client(governed.socket_path) as root:
            with pytest.raises(RequestError, match=why):
                root.upgrade()
            assert root.hello().pid == governed.pid
        assert stranger.bind(host, 80).addresses == [f"{host}:80"]


def test_the_policy_is_in_force_after_an_upgrade(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(f'uid = {UID}\nallow = "bind"\naddress = "{host}:80"')
    with Client(governed.socket_path) as root:
        root.upgrade()
        assert root.hello().pid == governed.pid
    assert stranger.bind(host, 80).addresses == [f"{host}:80"]
    assert stranger.bind(host, 81).received == []


def test_a_control_socket_open_to_others_without_a_policy_is_warned_of(
    run_dir: Path, policy: PolicyFile, start_binder: StartBinder
) -> None:
    require("default policy", not Path("/etc/multibinder/policy.toml").exists(), "this host has a policy")
    start_binder("--mode", "0666", name="open").wait_for_log("event=open-to-others")
    line = start_binder("--group", "daemon", name="group").wait_for_log("event=open-to-others")
    assert 'who="group daemon"' in line
    for name, options in (("closed", ["--mode", "0600"]), ("governed", ["--mode", "0666", "--policy", policy.path])):
        binder = start_binder(*map(str, options), name=name)
        binder.wait_for_log("event=serving")
        assert "open-to-others" not in binder.log()


def web(host: str, port: int, owner: str = "") -> dict[str, object]:
    return {"address": host, "port": port, "owner": owner}


def owners(binder: Binder) -> dict[str, list[str]]:
    with Client(binder.socket_path) as root:
        return {status.address: status.owners for status in root.list()}


def test_each_user_has_labels_of_its_own(
    policy: PolicyFile, governed: Binder, stranger: Stranger, other: Stranger, host: str
) -> None:
    policy.write(everything(UID, OTHER_UID))
    policy.reload(governed)
    address = f"{host}:80"
    assert stranger.ask("bind", web(host, 80, "app")).addresses == [address]
    # Another user may have the same label, and then has claims of its own.
    assert other.ask("bind", web(host, 81, "app")).addresses == [f"{host}:81"]
    [released] = other.ask("release", web(host, 80, "app")).reply["result"]
    assert (released["outcome"], released["had_claim"]) == ("kept", False)
    for method in ("bind", "check", "release"):
        told = other.ask(method, web(host, 80, f"app:{UID}"))
        assert told.received == []
        assert f"owner app:{UID} belongs to uid {UID}, not to uid {OTHER_UID}" in told.refusal
    # The policy allows the port to both users. Each claim belongs to one of them.
    assert other.ask("bind", web(host, 80, "app")).addresses == [address]
    [released] = other.ask("release", web(host, 80, f"app:{OTHER_UID}")).reply["result"]
    assert (released["outcome"], released["claims"]) == ("kept", [{"label": "app", "uid": UID}])
    assert owners(governed) == {address: ["app"], f"{host}:81": ["app"]}


def test_a_stranger_that_has_the_label_of_root_first_gets_no_right_to_roots_listener(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(everything(UID))
    policy.reload(governed)
    stranger.ask("bind", web(host, 81, "haproxy@web"))
    with Client(governed.socket_path) as root:
        root.bind([(host, 80)], owner="haproxy@web")[0].close()
        assert root.list()[1].claims == [OwnerStatus("haproxy@web", 0)]
        assert stranger.ask("release", web(host, 80, "haproxy@web")).reply["result"][0]["outcome"] == "kept"
        # Root names its own claim first, and those of others where it has none, or by their uid.
        assert root.release([(host, 80)], owner="haproxy@web")[0].outcome == "closed"
        assert root.release([(host, 81)], owner="haproxy@web:0")[0].outcome == "kept"
        assert root.release([(host, 81)], owner=f"haproxy@web:{UID}")[0].outcome == "closed"
        assert stranger.ask("bind", web(host, 81, "haproxy@web")).addresses == [f"{host}:81"]
        assert root.release([(host, 81)], owner="haproxy@web")[0].outcome == "closed"


def test_a_name_of_another_user_is_not_found_and_not_told(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    with Client(governed.socket_path) as root:
        root.bind([ListenerSpec(TcpAddress.of(host, 0), Options(name="stats"))])[0].close()
        for method in ("bind", "check", "release"):
            refusals = {
                stranger.ask(method, {"address": "::", "port": 1, "name": name}).refusal for name in ("stats", "statz")
            }
            assert len(refusals) == 1, "a name that exists and one that does not are refused alike"
        policy.write(f'uid = {UID}\nallow = "bind"\naddress = "{host}:0"')
        policy.reload(governed)
        [got] = stranger.bind(host, 0, name="stats").received
        stranger.bind(host, 0, name="admin")
        [own] = root.bind([ListenerSpec(TcpAddress.of(host, 8000), Options(name="admin"))])
        own.close()
        ports = {status.name: status.address for status in root.list() if status.claims == [OwnerStatus("", 0)]}
        assert ports["admin"] == f"{host}:8000"
        assert ports["stats"] != f"{host}:{got.port}"


def test_a_collision_with_a_listener_that_the_policy_does_not_show_tells_nothing_of_it(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    with Client(governed.socket_path) as root:
        root.bind([ListenerSpec(TcpAddress.of(host, 8000), Options(name="secret"))], owner="haproxy@web")[0].close()
    policy.write(f'uid = {UID}\nallow = "bind"\naddress = "*:8000"')
    policy.reload(governed)
    for method in ("bind", "check"):
        told = stranger.ask(method, {"address": "0.0.0.0", "port": 8000})
        assert told.refusal == "Could not bind: 0.0.0.0:8000: address already in use; choose another address or port"
    policy.write(f'uid = {UID}\nallow = ["bind", "list"]\naddress = "*:8000"')
    policy.reload(governed)
    assert (
        f"by {host}:8000, which this binder holds for haproxy@web of uid 0; release it"
        in stranger.ask("bind", {"address": "0.0.0.0", "port": 8000}).refusal
    )


def test_root_moves_claims_and_names_to_the_user_that_a_service_has_now(
    policy: PolicyFile, governed: Binder, stranger: Stranger, other: Stranger, host: str
) -> None:
    policy.write(everything(UID, OTHER_UID))
    policy.reload(governed)
    named = {"address": host, "port": 0, "name": "stats", "owner": "haproxy@web"}
    before = stranger.ask("bind", named, web(host, 80, "haproxy@web")).addresses
    told = stranger.ask("move", {"owner": f"haproxy@web:{UID}", "to": OTHER_UID})
    assert "may not move claims from one user to another" in told.refusal
    with Client(governed.socket_path) as root:
        [moved] = root.move([(f"haproxy@web:{UID}", OTHER_UID)])
        assert moved.addresses == before
        assert [status.claims for status in root.list()] == [[OwnerStatus("haproxy@web", OTHER_UID)]] * 2
    assert other.ask("bind", named, web(host, 80, "haproxy@web")).addresses == before
    assert stranger.ask("release", web(host, 80, "haproxy@web")).reply["result"][0]["outcome"] == "kept"
    assert other.ask("release", web(host, 80, "haproxy@web")).reply["result"][0]["outcome"] == "closed"


def test_a_claim_without_a_label_belongs_to_its_user(
    policy: PolicyFile, governed: Binder, stranger: Stranger, other: Stranger, host: str
) -> None:
    policy.write(everything(UID, OTHER_UID))
    policy.reload(governed)
    with Client(governed.socket_path) as root:
        root.bind([(host, 80)])[0].close()
        stranger.ask("bind", web(host, 81))
        for port in (80, 81):
            assert other.ask("release", web(host, port)).reply["result"][0]["outcome"] == "kept"
        assert other.ask("bind", web(host, 81)).addresses == [f"{host}:81"]
        assert other.ask("release", web(host, 81)).reply["result"][0]["outcome"] == "kept"
        assert set(owners(governed)) == {f"{host}:80", f"{host}:81"}
        assert [each.outcome for each in root.release([(host, 81)])] == ["closed"]


@pytest.mark.parametrize("how", ["upgrade", "SIGKILL"])
def test_a_label_keeps_its_user_after_a_crash_or_an_upgrade(
    policy: PolicyFile, start_binder: StartBinder, host: str, how: str
) -> None:
    policy.write(everything(UID, OTHER_UID))
    binder = start_binder("--guard", "--mode", "0666", "--policy", str(policy.path))
    with Stranger(UID, binder.socket_path) as stranger, Stranger(OTHER_UID, binder.socket_path) as other:
        stranger.ask("bind", web(host, 80, "app"), web(host, 81))
        pid = serving_pid(binder.socket_path)
        if how == "SIGKILL":
            os.kill(pid, signal.SIGKILL)
            serving_pid(binder.socket_path, not_=pid)
        else:
            with Client(binder.socket_path) as root:
                root.upgrade()
                root.hello()
        assert other.ask("release", web(host, 80, "app")).reply["result"][0]["had_claim"] is False
        assert other.ask("release", web(host, 81)).reply["result"][0]["outcome"] == "kept"
        told = stranger.ask("release", web(host, 80, "app"), web(host, 81))
        assert [each["outcome"] for each in told.reply["result"]] == ["closed", "closed"]


def test_list_shows_only_listeners_that_the_policy_allows(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(
        f'uid = {UID}\ndeny = "list"\naddress = "{host}:81"', f'uid = {UID}\nallow = "list"\naddress = "{host}:80-89"'
    )
    policy.reload(governed)
    with Client(governed.socket_path) as root:
        for listener in root.bind([(host, port) for port in (80, 81, 82, 90)]):
            listener.close()
        assert len(root.list()) == 4
    told = stranger.ask("list")
    assert [each["address"] for each in told.reply["result"]] == [f"{host}:80", f"{host}:82"]
    assert "error" in stranger.ask("status").reply
    policy.write(f'uid = {UID}\nallow = "status"')
    policy.reload(governed)
    assert stranger.ask("status").reply["result"]["policy"] == str(policy.path)
    assert "error" in stranger.ask("list").reply


def test_a_listener_that_is_found_by_its_name_is_judged_by_its_address(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(everything(UID))
    policy.reload(governed)
    stranger.bind(host, 443, name="web")
    policy.write(f'uid = {UID}\nallow = "*"\naddress = ["{host}:0", "{host}:8000"]')
    policy.reload(governed)
    with Client(governed.socket_path) as root:
        for port in (0, 443, 8000):
            for method in ("bind", "check", "release"):
                told = stranger.ask(method, {"address": host, "port": port, "name": "web"})
                assert (told.received, told.reply["error"]["code"]) == ([], POLICY_REFUSES), (port, method)
        assert [status.owners for status in root.list()] == [[""]]


def test_a_port_that_the_kernel_chose_belongs_to_the_user_who_bound_it(
    policy: PolicyFile, governed: Binder, stranger: Stranger, other: Stranger, host: str
) -> None:
    policy.write(f'uid = [{UID}, {OTHER_UID}]\nallow = ["bind", "release", "list"]\naddress = "{host}:0"')
    policy.reload(governed)
    mine = stranger.bind(host, 0, name="mine")
    [got] = mine.received
    # The same user gets the listener again by its name, and by its port.
    assert stranger.bind(host, 0, name="mine").received == [got]
    assert stranger.bind(host, got.port).received == [got]
    assert [each["name"] for each in stranger.ask("list").reply["result"]] == ["mine"]
    for told in (
        other.bind(host, got.port),
        other.ask("release", {"address": host, "port": got.port}),
    ):
        assert (told.received, told.reply["error"]["code"]) == ([], POLICY_REFUSES)
    assert other.ask("list").reply["result"] == []
    assert other.bind(host, 0, name="mine").received != [got]


def test_an_ipv6_listener_that_exists_is_handed_over_as_it_was_made(
    policy: PolicyFile, governed: Binder, stranger: Stranger
) -> None:
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(Client(governed.socket_path))
        try:
            [listener] = root.bind([("::1", 0)])
        except BindError as error:
            require("ipv6", False, str(error))
        port = listener.getsockname()[1]
        listener.close()
        policy.write(f'uid = {UID}\nallow = "bind"\naddress = "[::1]:*"\noptions = ["backlog"]')
        policy.reload(governed)
        assert len(stranger.bind("::1", port).received) == 1
        assert stranger.bind("::1", port, v6only=True).received == []
        [wildcard] = root.bind([ListenerSpec(TcpAddress.parse("[::]:0"), Options(v6only=False, name="both"))])
        port = wildcard.getsockname()[1]
        wildcard.close()
        policy.write(f'uid = {UID}\nallow = "bind"\naddress = "ipv6@*:*"')
        policy.reload(governed)
        for options in ({}, {"v6only": True}, {"name": "both"}):
            told = stranger.bind("::", port, **options)
            assert (told.received, told.reply["error"]["code"]) == ([], POLICY_REFUSES)


def test_v6only_with_the_name_of_an_ipv4_listener_is_a_refusal_and_not_an_internal_error(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(everything(UID))
    policy.reload(governed)
    stranger.bind(host, 80, name="web")
    told = stranger.bind("::1", 0, name="web", v6only=True)
    assert "the listener exists with address" in told.refusal
    assert "internal-error" not in governed.log()


def test_a_batch_of_releases_closes_only_listeners_that_the_policy_judged(
    policy: PolicyFile, governed: Binder, stranger: Stranger, host: str
) -> None:
    policy.write(everything(UID))
    policy.reload(governed)
    stranger.bind(host, 443)
    stranger.bind(host, 8000, name="a")
    policy.write(f'uid = {UID}\nallow = "*"\naddress = "{host}:8000"')
    policy.reload(governed)
    # After the first element has closed the listener named a, the second would mean port 443.
    named = [{"address": host, "port": port, "name": "a"} for port in (8000, 443)]
    assert stranger.ask("release", *named).reply["error"]["code"] == POLICY_REFUSES
    assert set(owners(governed)) == {f"{host}:443", f"{host}:8000"}


def test_policy_check_explains_and_its_exit_code_is_the_decision(policy: PolicyFile) -> None:
    policy.write(
        'name = "no databases"\ndeny = "bind"\naddress = "*:5432"', f'uid = {UID}\nallow = "bind"\naddress = "*:*"'
    )

    def check(*arguments: str) -> tuple[int, list[str]]:
        done = multibinder("policy", "check", "--policy", policy.path, *arguments)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    who = f"uid {UID}, groups 7, 8, no unit"
    gids = ("--gid", "8", "--gid", "7")
    assert check("--uid", str(UID), *gids, "--bind", "0.0.0.0:443") == (
        0,
        [
            f"bind 0.0.0.0:443 ({who}):",
            '  rule 1 ("no databases"): does not match, by its address',
            f"  allowed by rule 2 of {policy.path}",
            "allowed",
        ],
    )
    assert check("--uid", str(UID), *gids, "--bind", "127.0.0.1:5432") == (
        1,
        [f"bind 127.0.0.1:5432 ({who}):", f'  denied by rule 1 ("no databases") of {policy.path}', "denied"],
    )
    status, lines = check("--uid", str(UID), *gids, "--bind", "[::]:443")
    assert (status, [line for line in lines if line.startswith("bind")]) == (
        0,
        [f"bind [::]:443 ({who}):", f"bind 0.0.0.0:443 ({who}):"],
    )
    status, lines = check("--uid", str(OTHER_UID), "--unit", "a.service", "--release", "127.0.0.1:80")
    assert (status, lines[0]) == (1, f"release 127.0.0.1:80 (uid {OTHER_UID}, groups none, a.service):")
    assert lines[-2:] == [f"  no rule of {policy.path} allows it", "denied"]
    assert check("--uid", "root", "--method", "upgrade")[0] == 0
    assert check("--uid", str(OTHER_UID), "--method", "upgrade")[0] == 1
    status, lines = check("--uid", str(OTHER_UID), "--binder", str(OTHER_UID), "--method", "upgrade")
    assert (status, lines[-2]) == (0, f"  allowed to the binder's own user: no rule of {policy.path} says otherwise")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--uid", "0"], 2, "give one of --bind, --release and --method"),
        (["--uid", "0", "--bind", "a:1", "--method", "bind"], 2, "give one of --bind, --release and --method"),
        (["--bind", "127.0.0.1:1"], 2, "--uid"),
        (["--uid", "not-here", "--method", "bind"], 2, "there is no user 'not-here' on this host"),
        (["--uid", "0", "--bind", "localhost:1"], 2, "is a name: give a numeric address"),
        (["--uid", "0", "--bind", "127.0.0.1:1", "--option", "v6only"], 2, "v6only has a meaning for IPv6"),
        (["--uid", "0", "--method", "bind", "--policy", "/does/not/exist"], 1, "cannot read the policy: no such file"),
    ],
)  # fmt: skip
def test_policy_check_explains_what_it_cannot_do(
    policy: PolicyFile, arguments: list[str], status: int, says: str
) -> None:
    done = multibinder("policy", "check", "--policy", policy.path, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in " ".join(done.stderr.split())


def test_policy_lint_reports_errors_and_probable_mistakes(policy: PolicyFile) -> None:
    def lint() -> tuple[int, str, str]:
        done = multibinder("policy", "lint", policy.path)
        return done.returncode, done.stdout, done.stderr

    policy.write(everything(UID))
    assert lint() == (0, f"{policy.path}: 1 rule, nothing to report\n", "")
    policy.write('allow = "bind"', everything(UID).replace('"*"', '"bind"'))
    assert lint() == (
        1,
        (
            f"{policy.path}: rule 1: allows everybody who can reach the control socket: it has no uid, gid or unit\n"
            f"{policy.path}: rule 2: never decides: rule 1 matches all that it would\n"
        ),
        "",
    )
    policy.write("allow = []")
    status, out, error = lint()
    assert (status, out) == (1, "")
    assert error.startswith(f"multibinder: {policy.path}: rule 1: no method; name some of ")
