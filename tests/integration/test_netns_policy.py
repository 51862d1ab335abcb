"""No request gives another user a descriptor in a network namespace that no rule grants, whatever it is called."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
from pathlib import Path

from multibinder import Client, ListenerSpec, TcpAddress
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.socket_options import netns_cookie_of
from tests.conftest import StartBinder
from tests.support import Binder, Stranger, request, wait_until
from tests.support.campaign import times
from tests.support.namespaces import NetworkNamespace

UID, HOST = 4242, "0.0.0.0"
PORTS = range(17411, 17414)


def test_another_user_gets_no_socket_in_a_namespace_that_no_rule_grants(
    start_binder: StartBinder, run_dir: Path
) -> None:
    run_dir.chmod(0o711)
    path = run_dir / "policy.toml"
    path.touch(mode=0o600)
    binder = start_binder("--mode", "0666", "--policy", str(path))
    chance = random.Random(seed := random.randrange(10**6))
    with (
        NetworkNamespace("one") as one,
        NetworkNamespace("two") as two,
        Stranger(UID, binder.socket_path) as stranger,
        Client(binder.socket_path) as root,
    ):
        cookies = {"": own_cookie()}
        for each in (one, two):
            # Root has listeners everywhere, which the stranger may meet by cookie, by address or by name.
            with root.bind([ListenerSpec(TcpAddress(HOST, PORTS[0]), netns=each.name)], owner="root")[0] as sock:
                cookies[each.name] = netns_cookie_of(sock)
        ways = ["", "/proc/self/ns/net", "/dev/null", "/nowhere", f"cookie:{2**40}"]
        for each in (one, two):
            ways += [each.name, each.path, str(each.pid), f"cookie:{cookies[each.name]}", f"/proc/{each.pid}/ns/net"]
        patterns = [".", "*", one.name, two.name, one.name[:-1] + "*", two.path, "green"]
        # With the first one, the stranger may name namespaces, of which none is granted.
        policies: list[list[tuple[str, list[str]]]] = [[("allow", []), ("allow", ["green"])]]
        for _ in range(times(3, 60)):
            policies.append(
                [
                    (chance.choice(["allow", "deny"]), chance.sample(patterns, chance.choice([0, 1, 1, 2])))
                    for _ in range(chance.choice([1, 2, 3]))
                ]
            )
        for rules in policies:
            path.write_text("\n".join(map(text_of, rules)))
            reload(binder)
            granted = {cookie for name, cookie in cookies.items() if grants(rules, name, one, two)}
            seen: set[int] = set()
            for way, port in itertools.product(ways, PORTS[:2]):
                element = {"address": HOST, "port": port, "netns": way, "owner": "stranger"}
                client = stranger.connect()
                client.ask(request("bind", element))
                seen |= {cookie_of_descriptor(number) for number in client.descriptors}
                client.socket.close()
            assert seen <= granted, (rules, seen, granted, seed)
            # A namespace that is granted is got by its name or, where a rule has it, by its path.
            by_name = {cookies[each.name] for each in (one, two) if cookies[each.name] in granted}
            assert by_name <= seen, (rules, seen, granted, seed)
            root.release([each for each in root.list() if "stranger" in each.owners], owner=f"stranger:{UID}")


def text_of(rule: tuple[str, list[str]]) -> str:
    verb, names = rule
    return f'[[rule]]\nuid = {UID}\n{verb} = "*"\n' + (f"netns = {names!r}\n" if names else "")


def grants(rules: list[tuple[str, list[str]]], name: str, one: NetworkNamespace, two: NetworkNamespace) -> bool:
    """Return whether the rules grant a namespace, by a second way to say it than the binder's."""
    for verb, names in rules:
        hit = {".": name == "", "*": True, one.name: name == one.name, two.name: name == two.name, "green": False,
               one.name[:-1] + "*": name == one.name, two.path: name == two.name}  # fmt: skip
        matched = any(hit[each] for each in names) if names else (verb == "deny" or name == "")
        if matched:
            return verb == "allow"
    return False


def reload(binder: Binder) -> None:
    def loads() -> int:
        return binder.log_path.read_text().count("event=policy-reloaded")

    before = loads()
    os.kill(binder.pid, signal.SIGHUP)
    wait_until(lambda: loads() > before, "the policy is in force", log=binder.log)


def cookie_of_descriptor(number: int) -> int:
    with socket.socket(fileno=os.dup(number)) as sock:
        return netns_cookie_of(sock)
