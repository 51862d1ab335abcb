"""A rule of the policy grants network namespaces that it names, and no others."""

from __future__ import annotations

import itertools

import pytest

from multibinder.binder import namespace_names
from multibinder.binder.netns_patterns import cover, matches, parse_netns
from multibinder.binder.policy import Policy, covers
from multibinder.binder.policy_file import lint, parse
from multibinder.wire.addresses import TcpAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.messages import ListenerSpec

OWN_UID = 1
#: All by which rules can name the binder's namespace; one that has names; one that has none; one that is not certain.
NAMESPACES = {
    "": {"."},
    "cookie:7": {"cookie:7", "blue", "web-1", "/run/app/ns"},
    "cookie:8": {"cookie:8"},
    "cookie:9": {"cookie:9", "?"},
}
PATTERNS = [".", "*", "blue", "web-*", "b?ue", "/run/app/ns", "/run/other", "green", "cookie*"]


class Stranger:
    uid, gids, unit = 4242, frozenset[int](), ""


class Root:
    uid, gids, unit = 0, frozenset[int](), ""


@pytest.fixture(autouse=True)
def _namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_names, "designations", lambda canonical, paths: frozenset(NAMESPACES[canonical]))


def policy(*rules: str) -> Policy:
    text = "\n".join(f"[[rule]]\n{rule}" for rule in rules)
    return parse(text.encode(), "policy.toml")


def allowed(rules: Policy, netns: str, who: object = Stranger(), method: str = "bind") -> bool:
    spec = ListenerSpec(TcpAddress("127.0.0.1", 80), netns=netns)
    return rules.decide_listener(who, method, spec).allowed  # type: ignore[arg-type]


def granted(rules: Policy) -> set[str]:
    return {each for each in NAMESPACES if allowed(rules, each)}


@pytest.mark.parametrize(
    ("netns", "expected"),
    [
        (None, {""}),
        ('"."', {""}),
        ('"*"', {*NAMESPACES}),
        ('"blue"', {"cookie:7"}),
        ('"web-*"', {"cookie:7"}),
        ('"/run/app/ns"', {"cookie:7"}),
        ('[".", "blue"]', {"", "cookie:7"}),
        ('"green"', set()),
        ('"b*"', {"cookie:7"}),
        ('"c*"', set()),  # a cookie is no name
    ],
)
def test_a_rule_that_allows_grants_what_it_names_and_without_netns_the_binder_s_own(
    netns: str | None, expected: set[str]
) -> None:
    rule = 'allow = "*"' + (f"\nnetns = {netns}" if netns else "")
    assert granted(policy(rule)) == expected


@pytest.mark.parametrize(
    ("netns", "expected"),
    [
        (None, set()),
        ('"."', {"cookie:7", "cookie:8", "cookie:9"}),
        ('"blue"', {"", "cookie:8"}),  # the names of the last one are not certain
        ('"/run/app/ns"', {"", "cookie:8"}),
        ('"*"', set()),
    ],
)
def test_a_rule_that_denies_denies_what_it_names_and_without_netns_all(netns: str | None, expected: set[str]) -> None:
    denies = 'deny = "*"' + (f"\nnetns = {netns}" if netns else "")
    assert granted(policy(denies, 'allow = "*"\nnetns = "*"')) == expected


def test_root_may_use_every_namespace_that_no_rule_denies() -> None:
    assert all(allowed(policy(), each, Root()) for each in NAMESPACES)
    assert not allowed(policy('deny = "bind"\nnetns = "blue"'), "cookie:7", Root())


def test_only_a_client_that_a_rule_allows_a_namespace_may_name_one() -> None:
    rules = policy('uid = 4242\nallow = ["bind", "list"]\nnetns = ["blue", "/run/app/ns"]\naddress = "*:80"')
    for text, may in {"blue": True, "green": True, "12": True, "/run/app/ns": True, "/mnt/fuse/x": False}.items():
        assert rules.may_name_netns(Stranger(), "bind", text) is may
        assert not rules.may_name_netns(Stranger(), "release", text)
        assert rules.may_name_netns(Root(), "release", text)
    for other in (policy('allow = "*"'), policy('uid = 5\nallow = "*"\nnetns = "*"')):
        assert not other.may_name_netns(Stranger(), "bind", "blue")


@pytest.mark.parametrize("text", ["", "12", "cookie:7", "a b", "/run/*", "..", "x" * 300])
def test_what_can_be_another_namespace_tomorrow_is_no_pattern(text: str) -> None:
    with pytest.raises(AddressError):
        parse_netns(text)


def test_a_pattern_covers_another_only_if_it_matches_all_that_the_other_does() -> None:
    for one, other in itertools.product(PATTERNS, repeat=2):
        if cover([one], [other]):
            for each in NAMESPACES.values():
                for allow in (True, False):
                    assert not matches(other, each, allow=allow) or matches(one, each, allow=allow), (one, other)


def test_a_rule_never_covers_one_for_another_namespace() -> None:
    rules = policy('allow = "*"', 'allow = "*"\nnetns = "blue"', 'allow = "*"\nnetns = "*"', 'deny = "*"\nnetns = "b*"')
    own, blue, every, denies = rules.rules
    assert not covers(own, blue)
    assert not covers(blue, every)
    assert not covers(own, denies)
    assert covers(every, blue)
    assert [each for each in lint(policy('uid = 7\nallow = "upgrade"\nnetns = "blue"')) if "namespace" in each]
