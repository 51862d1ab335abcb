"""The policy decides who may do what, and says by which rule."""

from __future__ import annotations

import itertools
import os

import msgspec
import pytest

from multibinder import Address, ListenerSpec, Options, TcpAddress
from multibinder.binder.policy import AccessRequest, Policy, Rule, access_requests, covers, explain
from multibinder.binder.policy_file import parse

OWN_UID = 998
DEFAULT = None


class Asker(msgspec.Struct, frozen=True):
    uid: int = 1000
    gids: frozenset[int] = frozenset([1000])
    unit: str = "web.service"


SOMEBODY = Asker()
ROOT = Asker(0, frozenset([0]), "")
OWN = Asker(OWN_UID, frozenset([OWN_UID]), "multibinder.service")


def policy(*rules: str) -> Policy:
    text = "\n".join(f"[[rule]]\n{rule}" for rule in rules)
    return msgspec.structs.replace(parse(text.encode(), "p.toml"), own_uid=OWN_UID)


def spec(address: str, **options: object) -> ListenerSpec:
    return ListenerSpec(Address.parse(address), msgspec.convert(options, Options))


def decided(
    rules: Policy, asker: Asker, method: str, address: str | None = None, **options: object
) -> tuple[bool, int | None]:
    if address is None:
        decision = rules.decide(asker, method)
    else:
        decision = rules.decide_listener(asker, method, spec(address, **options))
    return decision.allowed, decision.rule.number if decision.rule else DEFAULT


def allows(rules: Policy, address: str, **options: object) -> bool:
    return decided(rules, SOMEBODY, "bind", address, **options)[0]


ALLOW_80 = 'uid = 1000\nallow = ["bind"]\naddress = ["*:80"]'


@pytest.mark.parametrize(
    ("asker", "method", "address", "expected"),
    [
        (SOMEBODY, "bind", "127.0.0.1:80", (True, 2)),
        (SOMEBODY, "bind", "[::1]:80", (True, 2)),
        (SOMEBODY, "check", "127.0.0.1:80", (True, 2)),
        (SOMEBODY, "bind", "127.0.0.1:81", (False, DEFAULT)),
        (SOMEBODY, "bind", "192.0.2.1:80", (False, 1)),
        (SOMEBODY, "check", "192.0.2.1:80", (False, 1)),
        (SOMEBODY, "release", "127.0.0.1:80", (False, DEFAULT)),
        (SOMEBODY, "list", None, (False, DEFAULT)),
        (SOMEBODY, "upgrade", None, (False, DEFAULT)),
        (Asker(uid=1001), "bind", "127.0.0.1:80", (False, DEFAULT)),
        (ROOT, "bind", "127.0.0.1:80", (True, DEFAULT)),
        (ROOT, "bind", "192.0.2.1:80", (False, 1)),
        (ROOT, "upgrade", None, (True, DEFAULT)),
        (OWN, "bind", "127.0.0.1:80", (True, DEFAULT)),
        (OWN, "bind", "192.0.2.1:80", (False, 1)),
        (OWN, "status", None, (True, DEFAULT)),
    ],
)
def test_the_first_matching_rule_decides_and_without_one_only_root_and_the_binders_user_are_allowed(
    asker: Asker, method: str, address: str | None, expected: tuple[bool, int | None]
) -> None:
    rules = policy('deny = "bind"\naddress = "192.0.2.0/24:*"', ALLOW_80)
    assert decided(rules, asker, method, address) == expected


def test_a_policy_without_rules_is_for_root_and_the_binders_user_alone() -> None:
    rules = policy()
    for method in ("bind", "check", "release", "list", "status", "upgrade"):
        assert [decided(rules, asker, method)[0] for asker in (ROOT, OWN, SOMEBODY)] == [True, True, False]


def test_root_and_the_binders_user_can_be_denied_by_the_file() -> None:
    rules = policy('uid = 0\ndeny = "upgrade"', f'uid = {OWN_UID}\ndeny = "*"')
    assert decided(rules, ROOT, "upgrade") == (False, 1)
    assert decided(rules, ROOT, "bind", "0.0.0.0:1") == (True, DEFAULT)
    assert decided(rules, OWN, "status") == (False, 2)


def test_the_order_of_rules_decides_and_not_how_specific_they_are() -> None:
    allow, deny = 'uid = 1000\nallow = "bind"', 'uid = 1000\ndeny = "bind"\naddress = "127.0.0.1:80"'
    assert decided(policy(allow, deny), SOMEBODY, "bind", "127.0.0.1:80") == (True, 1)
    assert decided(policy(deny, allow), SOMEBODY, "bind", "127.0.0.1:80") == (False, 1)


@pytest.mark.parametrize(
    ("who", "asker", "matches"),
    [
        ("uid = 1000", Asker(), True),
        ("uid = [7, 1000]", Asker(), True),
        ("uid = 1001", Asker(), False),
        ('uid = "root"', Asker(uid=0), True),
        ("gid = 44", Asker(gids=frozenset([1000, 44])), True),
        ("gid = [44, 45]", Asker(gids=frozenset([45])), True),
        ("gid = 44", Asker(gids=frozenset([1000])), False),
        ("gid = 1000", Asker(uid=5, gids=frozenset([5])), False),
        ('unit = "web.service"', Asker(), True),
        ('unit = "web.servic"', Asker(), False),
        ('unit = "WEB.service"', Asker(), False),
        ('unit = "haproxy@*.service"', Asker(unit="haproxy@web.service"), True),
        ('unit = "haproxy@*.service"', Asker(unit="haproxy@.scope"), False),
        ('unit = ["a.service", "web.*"]', Asker(), True),
        ('unit = "*"', Asker(unit="x.scope"), True),
        ('unit = "*"', Asker(unit=""), False),
        ('uid = 1000\nunit = "web.service"', Asker(), True),
        ('uid = 1000\nunit = "web.service"', Asker(unit="session-1.scope"), False),
        ('uid = 1000\ngid = 44\nunit = "web.service"', Asker(), False),
        ("uid = 1000\ngid = 44", Asker(gids=frozenset([44])), True),
    ],
)
def test_a_rule_matches_the_callers_that_it_names(who: str, asker: Asker, matches: bool) -> None:
    rules = policy(f'{who}\nallow = "status"', 'deny = "*"')
    assert decided(rules, asker, "status") == ((True, 1) if matches else (False, 2))


def test_a_caller_of_an_unknown_unit_does_not_escape_a_denial_by_unit() -> None:
    rules = policy('unit = "batch.service"\ndeny = "bind"', 'uid = 1000\nallow = "bind"')
    assert decided(rules, Asker(unit="batch.service"), "bind", "127.0.0.1:80") == (False, 1)
    assert decided(rules, Asker(unit=""), "bind", "127.0.0.1:80") == (False, 1)
    assert decided(rules, Asker(unit="web.service"), "bind", "127.0.0.1:80") == (True, 2)


@pytest.mark.parametrize(
    ("pattern", "granted", "refused"),
    [
        ("*:80", ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "[2001:db8::1]:80"], ["0.0.0.0:81", "0.0.0.0:0"]),
        ("*:1024-65535", ["127.0.0.1:1024", "127.0.0.1:65535", "[::1]:3000"], ["127.0.0.1:1023", "127.0.0.1:0"]),
        ("*:0", ["127.0.0.1:0", "[::1]:0"], ["127.0.0.1:1"]),
        ("*:*", ["127.0.0.1:0", "0.0.0.0:65535", "[::]:443"], []),
        ("ipv4@*:80", ["192.0.2.1:80", "0.0.0.0:80"], ["[::1]:80", "[::]:80"]),
        ("tcp4@*:80", ["192.0.2.1:80"], ["[::1]:80"]),
        ("ipv6@*:80", ["[::1]:80"], ["127.0.0.1:80"]),
        ("tcp@*:80", ["[::1]:80", "127.0.0.1:80"], ["127.0.0.1:81"]),
        ("192.0.2.0/24:80", ["192.0.2.0:80", "192.0.2.255:80"], ["192.0.3.0:80", "192.0.1.255:80", "0.0.0.0:80"]),
        ("192.0.2.7:80", ["192.0.2.7:80"], ["192.0.2.6:80", "[::ffff:192.0.2.6]:80", "[::c000:207]:80"]),
        ("192.0.2.7/32:80", ["192.0.2.7:80"], ["192.0.2.6:80"]),
        ("128.0.0.0/1:80", ["128.0.0.0:80", "255.0.0.1:80"], ["127.255.255.255:80"]),
        ("0.0.0.0/0:80", ["0.0.0.0:80", "203.0.113.9:80"], ["[::1]:80", "[::]:80"]),
        ("0.0.0.0:80", ["0.0.0.0:80"], ["127.0.0.1:80", "[::]:80"]),
        ("[2001:db8::/32]:443", ["[2001:db8:ffff::1]:443"], ["[2001:db9::]:443", "[::]:443", "32.1.13.184:443"]),
        ("[::1]:443", ["[::1]:443", "[0:0:0:0:0:0:0:1]:443"], ["[::2]:443", "127.0.0.1:443"]),
        ("[::/0]:443", ["[::1]:443"], ["127.0.0.1:443", "[::ffff:127.0.0.1]:443", "[::]:443"]),
        ("127.0.0.0/8:443", ["[::ffff:127.0.0.1]:443", "[::ffff:7f00:1]:443"], ["[::ffff:128.0.0.1]:443"]),
        ("unix@/run/", [], ["127.0.0.1:80"]),
    ],
)
def test_a_pattern_matches_the_addresses_that_it_describes(
    pattern: str, granted: list[str], refused: list[str]
) -> None:
    rules = policy(f'uid = 1000\nallow = "bind"\naddress = "{pattern}"')
    assert [address for address in (*granted, *refused) if allows(rules, address)] == granted


def test_a_pattern_of_a_network_matches_exactly_its_addresses() -> None:
    for prefix in (24, 25, 30, 31, 32):
        rules = policy(f'uid = 1000\nallow = "bind"\naddress = "192.0.2.64/{prefix if prefix > 25 else 26}:5"')
        size = 2 ** (32 - (prefix if prefix > 25 else 26))
        granted = [last for last in range(256) if allows(rules, f"192.0.2.{last}:5")]
        assert granted == list(range(64, 64 + size))


@pytest.mark.parametrize(
    ("address", "options", "takes"),
    [
        ("0.0.0.0:80", {}, ["0.0.0.0:80"]),
        ("[::]:80", {}, ["[::]:80", "0.0.0.0:80"]),
        ("[::]:80", {"v6only": False}, ["[::]:80", "0.0.0.0:80"]),
        ("[::]:80", {"v6only": True}, ["[::]:80"]),
        ("[::1]:80", {}, ["[::1]:80"]),
        ("[::ffff:192.0.2.1]:80", {}, ["192.0.2.1:80"]),
        ("[::ffff:0.0.0.0]:80", {}, ["0.0.0.0:80"]),
        ("[::ffff:c000:201]:80", {"v6only": True}, ["192.0.2.1:80"]),
        ("[::192.0.2.1]:80", {}, ["[::192.0.2.1]:80"]),
    ],
)
def test_a_listener_needs_access_to_every_address_that_it_takes(
    address: str, options: dict[str, object], takes: list[str]
) -> None:
    assert [str(wanted.address) for wanted in access_requests(spec(address, **options))] == takes


def test_ipv6_for_all_addresses_needs_ipv4_as_well_unless_it_says_v6only() -> None:
    rules = policy('uid = 1000\nallow = "bind"\naddress = "ipv6@*:443"')
    assert not allows(rules, "[::]:443")
    assert not allows(rules, "[::]:443", v6only=False)
    assert allows(rules, "[::]:443", v6only=True)
    denied = policy('deny = "bind"\naddress = "ipv4@*:443"', 'uid = 1000\nallow = "bind"')
    assert decided(denied, SOMEBODY, "bind", "[::]:443") == (False, 1)
    assert decided(denied, SOMEBODY, "bind", "[::]:443", v6only=True) == (True, 2)


def test_an_existing_listener_is_judged_by_its_own_v6only() -> None:
    rules = policy('uid = 1000\nallow = "bind"\naddress = "ipv6@*:443"\noptions = ["backlog"]')
    assert rules.decide_listener(SOMEBODY, "bind", spec("[::]:443"), v6only=True).allowed
    assert not rules.decide_listener(SOMEBODY, "bind", spec("[::]:443"), v6only=False).allowed
    assert not rules.decide_listener(SOMEBODY, "bind", spec("[::]:443", v6only=True), v6only=False).allowed
    # The listener has the option, but the request does not give it.
    assert rules.decide_listener(SOMEBODY, "bind", spec("[::1]:443"), v6only=True).allowed


@pytest.mark.parametrize("address", ["0.0.0.0:443", "[::]:443", "[::ffff:0.0.0.0]:443"])
def test_a_denial_of_one_address_also_denies_its_wildcards(address: str) -> None:
    rules = policy('deny = "bind"\naddress = "192.0.2.1:443"', 'uid = 1000\nallow = "bind"')
    assert decided(rules, SOMEBODY, "bind", address) == (False, 1)
    assert decided(rules, SOMEBODY, "bind", address.replace("443", "444")) == (True, 2)
    assert decided(rules, SOMEBODY, "bind", "192.0.2.2:443") == (True, 2)
    assert decided(rules, SOMEBODY, "bind", "[::]:443", v6only=True) == (True, 2)


def test_a_permission_for_one_address_does_not_allow_its_wildcards() -> None:
    rules = policy('uid = 1000\nallow = "bind"\naddress = ["192.0.2.1:443", "[2001:db8::1]:443", "127.0.0.0/8:443"]')
    assert not allows(rules, "0.0.0.0:443")
    assert not allows(rules, "[::]:443", v6only=True)


@pytest.mark.parametrize(
    ("options", "given", "granted"),
    [
        ('["backlog"]', {}, True),
        ('["backlog"]', {"backlog": 5}, True),
        ('["backlog"]', {"name": "a"}, False),
        ('["backlog"]', {"backlog": 5, "name": "a"}, False),
        ('["backlog", "name"]', {"backlog": 5, "name": "a"}, True),
        ('["backlog"]', {"v6only": False}, False),
        ("[]", {}, True),
        ("[]", {"backlog": 5}, False),
        ('"v6only"', {"v6only": True}, True),
    ],
)
def test_all_options_that_are_given_must_be_allowed(options: str, given: dict[str, object], granted: bool) -> None:
    rules = policy(f'uid = 1000\nallow = "bind"\noptions = {options}')
    assert allows(rules, "[::1]:80", **given) is granted


@pytest.mark.parametrize(
    ("given", "granted"),
    [({}, True), ({"backlog": 5}, True), ({"name": "a"}, False), ({"name": "a", "backlog": 5}, False)],
)
def test_one_denied_option_suffices_for_a_denial(given: dict[str, object], granted: bool) -> None:
    rules = policy('deny = "bind"\noptions = ["name", "v6only"]', 'uid = 1000\nallow = "bind"')
    assert allows(rules, "[::1]:80", **given) is granted


def test_a_denial_of_an_option_does_not_deny_methods_without_options() -> None:
    rules = policy('deny = "*"\noptions = "name"', 'uid = 1000\nallow = "*"')
    for method in ("list", "status", "upgrade"):
        assert decided(rules, SOMEBODY, method) == (True, 2)


def test_for_methods_without_an_address_a_rule_for_some_addresses_can_allow_list_and_status_but_not_deny() -> None:
    allow = policy('uid = 1000\nallow = "*"\naddress = "*:80"')
    assert decided(allow, SOMEBODY, "list") == (True, 1)
    assert decided(allow, SOMEBODY, "status") == (True, 1)
    assert decided(allow, SOMEBODY, "upgrade") == (False, DEFAULT)
    deny = policy('deny = "*"\naddress = "*:80"', 'uid = 1000\nallow = "*"')
    for method in ("list", "status", "upgrade"):
        assert decided(deny, SOMEBODY, method) == (True, 2)


def test_a_decision_says_which_rule_of_which_file_or_that_none_matched() -> None:
    rules = policy('name = "web"\nuid = 1000\nallow = "list"', 'uid = 1000\ndeny = "status"')
    assert rules.decide(SOMEBODY, "list").why == 'allowed by rule 1 ("web") of p.toml'
    assert rules.decide(SOMEBODY, "status").why == "denied by rule 2 of p.toml"
    assert rules.decide(SOMEBODY, "upgrade").why == "no rule of p.toml allows it"
    assert rules.decide(ROOT, "upgrade").why == "allowed to root: no rule of p.toml says otherwise"
    assert rules.decide(OWN, "upgrade").why == "allowed to the binder's own user: no rule of p.toml says otherwise"


def test_an_explanation_gives_the_reason_for_each_rule_that_does_not_decide() -> None:
    rules = policy(
        'uid = 1\nallow = "bind"',
        'gid = 1\nallow = "bind"',
        'unit = "u"\nallow = "bind"',
        'allow = "list"',
        'allow = "bind"\naddress = "*:81"',
        'allow = "bind"\noptions = []',
        'name = "seven"\nallow = "bind"',
        'deny = "bind"',
    )
    wanted = AccessRequest(TcpAddress.parse("127.0.0.1:80"), frozenset(["backlog"]))
    assert list(explain(rules, SOMEBODY, "bind", wanted)) == [
        "rule 1: does not match, by its uid",
        "rule 2: does not match, by its gid",
        "rule 3: does not match, by its unit",
        "rule 4: does not match, by its methods",
        "rule 5: does not match, by its address",
        "rule 6: does not match, by its options",
        'allowed by rule 7 ("seven") of p.toml',
    ]


_RULES = [
    f'{who}{verb} = "{method}"{address}{options}'
    for who in ("", "uid = 1000\n", "uid = [1000, 5]\n", 'unit = "web.service"\n', 'unit = "w*"\n', 'unit = "w?*"\n')
    for verb in ("allow", "deny")
    for method in ("bind", "*")
    for address in ("", *(f'\naddress = "{one}"' for one in ("10.1.0.0/16:80", "10.0.0.0/8:*", "ipv4@*:*", "[::1]:80")))
    for options in ("", "\noptions = []", '\noptions = "name"')
]


def test_a_rule_that_lint_reports_as_never_deciding_never_decides() -> None:
    """Check all pairs of some rules against all requests that they can distinguish."""
    asked = [
        AccessRequest(TcpAddress.parse(address), frozenset(options))
        for address in ("10.1.0.0:80", "10.2.0.0:80", "10.1.0.0:9", "0.0.0.0:80", "[::]:80", "[::1]:80", "1.0.0.1:80")
        for options in ((), ("name",), ("name", "backlog"))
    ]
    askers = [Asker(), Asker(5), Asker(7), Asker(unit=""), Asker(5, unit="w"), ROOT]
    rules: list[Rule] = list(policy(*_RULES).rules)
    situations = list(itertools.product(askers, asked))
    matched = {
        rule.number: {
            index for index, (asker, wanted) in enumerate(situations) if not rule.mismatch(asker, "bind", wanted)
        }
        for rule in rules
    }
    covered = 0
    for earlier, later in itertools.permutations(rules, 2):
        if covers(earlier, later):
            covered += 1
            assert matched[later.number] <= matched[earlier.number], (earlier, later)
    assert covered > len(rules)


def test_the_policys_own_user_is_the_one_that_reads_the_file() -> None:
    assert parse(b"", "p").own_uid == os.geteuid()


@pytest.mark.parametrize(
    ("pattern", "allowed", "not_allowed"),
    [
        ("*:80", ["127.0.0.1:80", "mptcp@127.0.0.1:80"], ["udp@127.0.0.1:80", "quic@127.0.0.1:80", "vsock@1:80"]),
        ("udp@*:80", ["udp@[::1]:80", "quic@127.0.0.1:80"], ["127.0.0.1:80", "mptcp@127.0.0.1:80", "vsock@*:80"]),
        ("quic4@*:80", ["quic@127.0.0.1:80", "udp@127.0.0.1:80"], ["quic@[::1]:80", "udp@[::]:80"]),
        ("mptcp@*:80", ["mptcp@127.0.0.1:80", "127.0.0.1:80"], ["udp@127.0.0.1:80"]),
        ("vsock@*:80", ["vsock@*:80", "vsock@3:80"], ["vsock@*:81", "127.0.0.1:80", "udp@127.0.0.1:80"]),
        ("vsock@3:70-80", ["vsock@3:75"], ["vsock@*:75", "vsock@4:75"]),
    ],
)
def test_a_rule_that_allows_is_about_one_kind(pattern: str, allowed: list[str], not_allowed: list[str]) -> None:
    rules = policy(f'uid = 1000\nallow = ["bind"]\naddress = ["{pattern}"]')
    assert [address for address in [*allowed, *not_allowed] if allows(rules, address)] == allowed


@pytest.mark.parametrize(
    ("pattern", "denied", "not_denied"),
    [
        ("*:80", ["127.0.0.1:80", "udp@0.0.0.0:80", "quic@127.0.0.1:80", "mptcp@[::1]:80"], ["vsock@3:80"]),
        ("tcp@*:80", ["127.0.0.1:80", "mptcp@[::1]:80"], ["udp@0.0.0.0:80"]),
        ("udp@*:80", ["udp@0.0.0.0:80", "quic@127.0.0.1:80"], ["127.0.0.1:80"]),
        ("vsock@3:80", ["vsock@3:80", "vsock@*:80"], ["vsock@4:80", "127.0.0.1:80"]),
    ],
)
def test_a_rule_that_denies_without_a_kind_is_about_every_kind_with_ports(
    pattern: str, denied: list[str], not_denied: list[str]
) -> None:
    rules = policy(f'deny = ["bind"]\naddress = ["{pattern}"]', 'uid = 1000\nallow = ["bind"]')
    assert [address for address in [*denied, *not_denied] if not allows(rules, address)] == denied
