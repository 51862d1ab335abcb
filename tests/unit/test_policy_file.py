"""Errors of the policy file are explained so that a user can correct them, and no content stops the binder."""

from __future__ import annotations

import grp
import os
import pwd
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

from multibinder import Address, AddressError
from multibinder.binder import policy_file
from multibinder.binder.address_patterns import AbstractNames, Network, PathPrefix, VsockPorts, parse_pattern
from multibinder.binder.policy import METHODS
from multibinder.binder.policy_file import PolicyError, lint, load, parse
from tests.support import descriptors_unchanged, require
from tests.unit.test_policy import Asker, spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.toml"
GOOD = '[[rule]]\nuid = 1000\nallow = "bind"\naddress = "*:80"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


def complaint(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "p")
    said = str(caught.value)
    assert said.startswith("p: ")
    assert "\n" not in said
    return said.removeprefix("p: ")


def of_rule(text: str) -> str:
    return complaint(f"[[rule]]\n{text}").removeprefix("rule 1: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules = 1", "there is no such key: `rules`; write [[rule]]"),
        ("[rule]\nuid = 1", "Expected `array`, got `object`; write [[rule]]"),
        ("[[rule]]\nadress = 1", "rule 1: there is no such key: `adress`"),
        (f'{GOOD}[[rule]]\nallow = "list"\nwhy = ""', "rule 2: there is no such key: `why`"),
        ("[[rule]]\nallow = 5", "rule 1: allow: expected `str | array | null`, got `int`"),
        ("[[rule]]\nuid = true", "rule 1: uid: expected `int | str | array | null`, got `bool`"),
        ("[[rule]]\nuid = [1.5]", "rule 1: uid: expected `int | str`, got `float`"),
        (f'{GOOD}[[rule]]\nname = "two"', f'rule 2 ("two"): give either allow or deny, a list of {", ".join(METHODS)}'),
    ],
)
def test_an_error_in_the_file_is_reported_with_its_place(text: str, says: str) -> None:
    assert complaint(text).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uid = 1", f'give either allow or deny, a list of {", ".join(METHODS)}, or "*"'),
        ('allow = "bind"\ndeny = "list"', "give either allow or deny"),
        ("allow = []", f'no method; name some of {", ".join(METHODS)}, or "*"'),
        ('allow = "check"', "there is no method 'check'; there are bind, release, list, status, upgrade, and \"*\""),
        ('deny = ["bind", "Bind"]', "there is no method 'Bind'"),
        ('allow = "bind"\nuid = []', "uid is an empty list, which no client can match; leave it out for any"),
        ('allow = "bind"\ngid = []', "gid is an empty list"),
        ('allow = "bind"\nunit = []', "unit is an empty list"),
        ('allow = "bind"\naddress = []', "address is an empty list"),
        ('allow = "bind"\nunit = ["a", ""]', "unit is an empty string, which is no unit's name; leave it out for any"),
        ('allow = "bind"\noptions = ["tls"]', "there is no option 'tls'; there are backlog, v6only, name"),
        ('allow = "bind"\nuid = "not-here"', "there is no user 'not-here' on this host (see 'getent passwd')"),
        ('allow = "bind"\ngid = "not-here"', "there is no group 'not-here' on this host (see 'getent group')"),
        ('allow = "bind"\nuid = "0"', "there is no user '0' on this host"),
        ('allow = "bind"\nuid = "a\\u0000b"', "there is no user"),
        ('allow = "bind"\nuid = -1', "-1 is no user's number"),
        ('allow = "bind"\nuid = 4294967295', "4294967295 is no user's number"),
        ('allow = "bind"\ngid = 99999999999999999999', "99999999999999999999 is no group's number"),
        ('allow = "bind"\naddress = "80"', "'80' is no address pattern: write 192.0.2.0/24:80"),
    ],
)  # fmt: skip
def test_an_error_in_a_rule_is_reported_with_its_reason(text: str, says: str) -> None:
    assert of_rule(text).startswith(says)


@pytest.mark.parametrize(
    "text",
    [
        b"a =", b"[[rule]", b"\xff", b'[[rule]]\nname = "\xed\xa0\x80"', b"[[rule]]\nallow = 'bind'\nallow = 'list'",
        b"x = " + b"[" * 20000, b"[[rule]]\nuid = " + b"9" * 5000, b"\0", b'name = "\x01"',
    ],
)  # fmt: skip
def test_a_file_that_is_not_toml_is_refused(text: bytes) -> None:
    assert complaint(text).startswith("not TOML: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.1/24:80", "192.0.2.1 has bits beyond /24: give the network's own address, or one host"),
        ("[2001:db8::1/32]:80", "2001:db8::1 has bits beyond /32"),
        ("0.0.0.1/0:80", "0.0.0.1 has bits beyond /0"),
        ("192.0.2.0/33:80", "the prefix length is a number from 0 to 32"),
        ("[2001:db8::/129]:80", "the prefix length is a number from 0 to 128"),
        ("[2001:db8::/]:80", "the prefix length is a number from 0 to 128"),
        ("[2001:db8::/-1]:80", "the prefix length is a number from 0 to 128"),
        ("[2001:db8::/²]:80", "the prefix length is a number from 0 to 128"),
        (f"[2001:db8::/{'0' * 5000}]:80", "the prefix length is a number from 0 to 128"),
        ("*:90-80", "a port is a number from 0 to 65535, and a range goes upwards"),
        ("*:65536", "a port is a number from 0 to 65535, and a range goes upwards"),
        ("*:1-65536", "a port is a number from 0 to 65535, and a range goes upwards"),
        ("*:*-80", "* is every port; write * or a range"),
        ("ipv4@[::1]:80", "::1 is not an IPv4 address"),
        ("ipv6@127.0.0.1:80", "127.0.0.1 is not an IPv6 address"),
        ("[::ffff:192.0.2.1]:80", "would match nothing: it is IPv4, so write it as an IPv4 address or network"),
        ("[::ffff:0:0/96]:80", "would match nothing: it is IPv4, so write it as an IPv4 address or network"),
        ("unix@run", "write an absolute path, with / at the end for all that is below it"),
        ("unix@/run/../etc/", "write an absolute path, with / at the end for all that is below it"),
        ("unix@/run/..", "write an absolute path, with / at the end for all that is below it"),
        *((text, "is no address pattern: write 192.0.2.0/24:80") for text in
          ("", "*", ":80", "*:", "*:-1", "*:80-", "*: 80", "*:80\n", "localhost:80", "::1:80", "sctp@*:80",
           "*:\uff18\uff10", "*/0:80", "*:80,*:443")),
        ("1.2.3:80", "host '1.2.3' is not a valid IP address"),
        ("01.2.3.4:80", "host '01.2.3.4' is not a valid IP address"),
        ("[fe80::1%eth0]:80", "host 'fe80::1%eth0' has an IPv6 scope"),
        ("[localhost]:80", "host 'localhost' is a name"),
        ("[]:80", "host '' is ambiguous"),
    ],
)  # fmt: skip
def test_an_error_in_an_address_is_reported_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_pattern(text)
    assert says in str(caught.value)


def test_an_address_pattern_means_what_it_says() -> None:
    assert parse_pattern("*:*") == Network(0, 0, 0, 0, 65535)
    assert parse_pattern("ipv4@*:80") == Network(4, 0, 0, 80, 80)
    assert parse_pattern("192.0.2.0/24:80-90") == Network(4, 0xC0000200, 24, 80, 90)
    assert parse_pattern("192.0.2.1:0") == Network(4, 0xC0000201, 32, 0, 0)
    assert parse_pattern("[::/0]:1") == Network(6, 0, 0, 1, 1)
    assert parse_pattern("tcp6@[::1]:1") == Network(6, 1, 128, 1, 1, "tcp")
    assert parse_pattern("quic4@*:1") == Network(4, 0, 0, 1, 1, "udp")
    assert parse_pattern("vsock@*:7-9") == VsockPorts(None, 7, 9)
    assert parse_pattern("unix@/run/web/") == PathPrefix("/run/web/")
    assert parse_pattern("abns@web-*") == AbstractNames("web-", is_prefix=True)
    assert parse_pattern("abns@web").has(Address.parse("abnsz@web"))
    assert not parse_pattern("abns@web").has(Address.parse("abns@web2"))
    assert not parse_pattern("abns@*").has(Address.parse("unix@/web"))


def test_a_file_of_the_own_user_is_read(file: Path) -> None:
    for mode in (0o644, 0o600, 0o444, 0o755):
        file.chmod(mode)
        with descriptors_unchanged():
            policy = load(str(file))
        assert (policy.path, len(policy.rules)) == (str(file), 1)


def test_an_empty_file_is_a_policy_without_rules(file: Path) -> None:
    file.write_text("# none\n")
    assert load(str(file)).rules == ()


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o620, 0o602])
def test_a_file_that_other_users_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(PolicyError, match=rf"others may write it \(mode {mode:04o}\), so anything may .* 'chmod go-w'"):
        load(str(file))


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    require("root", os.geteuid() == 0, "giving a file away needs root")
    os.chown(file, 4242, 0)
    with pytest.raises(PolicyError, match="belongs to uid 4242, who could allow themselves anything; 'chown root'"):
        load(str(file))
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(PolicyError, match="belongs to uid 4242"):
        load(str(link))


def _make(kind: str, path: Path) -> None:
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            path.write_bytes(b"#" * (1024 * 1024 + 1))


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "large"])
def test_a_path_that_is_not_a_file_or_is_too_large_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policy.toml"
    _make(kind, path)
    with descriptors_unchanged(), pytest.raises(PolicyError) as caught:
        load(str(path))
    reason = "cannot read the policy: is a directory" if kind == "directory" else (
        "no policy: a regular file of at most 1 MiB is expected"
    )  # fmt: skip
    assert str(caught.value) == f"{path}: {reason}"


def test_a_file_of_just_one_mebibyte_is_read(file: Path) -> None:
    file.write_text(GOOD + "#" * (1024 * 1024 - len(GOOD)))
    assert len(load(str(file)).rules) == 1


def test_a_file_that_cannot_be_opened_is_explained_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "socket").touch()
    for name, reason in (
        ("absent", "no such file or directory"),
        ("socket/x", "not a directory"),
        ("loop", "too many levels of symbolic links"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(PolicyError) as caught:
            load(f"{tmp_path}/{name}")
        assert str(caught.value) == f"{tmp_path}/{name}: cannot read the policy: {reason}"


def linted(*rules: str) -> list[str]:
    return list(lint(parse("\n".join(f"[[rule]]\n{rule}" for rule in rules).encode(), "p")))


class PathAddress(Address, frozen=True):
    """An address of a kind with paths."""

    kind: ClassVar[str] = "path"
    prefixes: ClassVar[frozenset[str]] = frozenset()

    where: str

    @property
    def path(self) -> str:
        return self.where


@pytest.mark.parametrize(
    ("pattern", "path", "has"),
    [
        ("unix@/run/web/", "/run/web/a", True),
        ("unix@/run/web/", "/run/web/deep/a", True),
        ("unix@/run/web/", "/run/web", False),
        ("unix@/run/web/", "/run/website", False),
        ("unix@/run/web", "/run/web", True),
        ("unix@/run/web", "/run/web/a", False),
        ("*:*", "/run/web", False),
    ],
)
def test_a_pattern_of_paths_matches_the_path_of_an_address(pattern: str, path: str, has: bool) -> None:
    assert parse_pattern(pattern).has(PathAddress(path)) is has
    assert parse_pattern(pattern).touches(PathAddress(path)) is has


NEVER_DECIDES = "rule 2: never decides: rule 1 matches all that it would"
MATCHES_NOTHING = (
    "rule 1: unix@/proc/self/web/ matches nothing: a link leads there, and a rule needs the real path: "
    f"write unix@{os.path.realpath('/proc/self')}/web/"
)
DENIES_ROOT = "denies root too; put a rule that allows uid 0 before it if that is not meant"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([], ["no rule: only root and the binder's own user may ask for anything"]),
        (['name = "a"\nuid = 1\nallow = "list"', 'name = "a"\nuid = 2\nallow = "list"'],
         ['rule 2 ("a"): rule 1 ("a") has the same name']),
        (['uid = 1\nallow = "*"', 'uid = 1\nallow = "bind"\naddress = "*:80"'], [NEVER_DECIDES]),
        (['uid = 1\nallow = "bind"\naddress = "10.0.0.0/8:*"', 'uid = 1\nallow = "bind"\naddress = "10.1.0.0/16:80"'],
         [NEVER_DECIDES]),
        (['uid = 1\nallow = "bind"\naddress = "10.1.0.0/16:*"', 'uid = 1\nallow = "bind"\naddress = "10.0.0.0/8:80"'],
         []),
        (['uid = 1\nallow = "bind"\naddress = "10.0.0.0/8:*"', 'uid = 1\ndeny = "bind"\naddress = "10.1.0.0/16:80"'],
         []),
        (['uid = 1\nallow = "bind"\naddress = "ipv4@*:*"', 'uid = 1\ndeny = "bind"\naddress = "tcp@10.1.0.0/16:80"'],
         [NEVER_DECIDES]),
        (['uid = 1\nallow = "bind"\naddress = "ipv4@*:*"', 'uid = 1\ndeny = "bind"\naddress = "10.1.0.0/16:80"'],
         []),
        (['unit = "w*"\nallow = "list"', 'unit = "web.service"\nallow = "list"'], [NEVER_DECIDES]),
        (['unit = "w?*"\nallow = "list"', 'unit = "w*"\nallow = "list"'], []),
        (['allow = "bind"'], ["rule 1: allows everybody who can reach the control socket: it has no uid, gid or unit"]),
        (['allow = ["list", "status"]'], []),
        (['deny = "bind"'], [f"rule 1: {DENIES_ROOT}"]),
        (['uid = 0\ndeny = "upgrade"'], [f"rule 1: {DENIES_ROOT}"]),
        (['deny = "bind"\naddress = "*:80"'], [f"rule 1: {DENIES_ROOT.replace('too', 'too there')}"]),
        (['uid = 0\nallow = "*"', 'deny = "bind"'], []),
        (['uid = 0\nallow = "list"', 'deny = "bind"'], [f"rule 2: {DENIES_ROOT}"]),
        (['uid = 5\ndeny = "bind"'], []),
        (['uid = 5\nallow = "upgrade"\naddress = "*:80"'], ["rule 1: never matches: upgrade is about no address"]),
        (['uid = 5\ndeny = ["status", "upgrade"]\naddress = "*:80"'],
         ["rule 1: never matches: status, upgrade is about no address"]),
        (['uid = 5\ndeny = "bind"\noptions = []'],
         ["rule 1: never matches: its list of options is empty, so it denies none"]),
        (['unit = "a.service"\ndeny = "bind"'],
         ["rule 1: denies by unit: it also denies all whose unit cannot be told (none, or the process has ended)"]),
        (['uid = 5\nallow = "bind"\naddress = "unix@/proc/self/web/"'],
         [MATCHES_NOTHING]),
    ],
)  # fmt: skip
def test_a_probable_mistake_is_reported(rules: list[str], says: list[str]) -> None:
    assert linted(*rules) == says


def test_the_example_in_the_documentation_means_what_its_comments_say() -> None:
    assert policy_file.__doc__
    text = textwrap.dedent(policy_file.__doc__.partition("::\n")[2])
    policy = parse(text.encode(), "p")
    assert list(lint(policy)) == []
    web = Asker(unit="multibinder-haproxy@web.service")

    def allowed(asker: Asker, address: str, **options: object) -> bool:
        return policy.decide_listener(asker, "bind", spec(address, **options)).allowed

    assert allowed(web, "0.0.0.0:80")
    assert allowed(web, "[2001:db8::5]:443", backlog=10, v6only=True)
    assert not allowed(web, "[2001:db9::5]:443")
    assert not allowed(web, "0.0.0.0:443")
    assert not allowed(web, "0.0.0.0:80", name="x")
    assert not allowed(Asker(), "0.0.0.0:80")
    assert policy.decide(web, "list").allowed
    assert not policy.decide(web, "status").allowed


def test_the_example_file_passes_lint_and_does_what_its_comments_say(tmp_path: Path) -> None:
    try:
        www_data, adm = pwd.getpwnam("www-data").pw_uid, grp.getgrnam("adm").gr_gid
    except KeyError as error:
        require("debian", False, f"the example file has Debian's names: {error}")
    copy = tmp_path / "policy.toml"
    copy.write_bytes(EXAMPLE.read_bytes())
    copy.chmod(0o644)
    policy = load(str(copy))
    assert list(lint(policy)) == []
    application = Asker(www_data, frozenset([www_data]), "app.service")
    watcher = Asker(1000, frozenset([1000, adm]), "")
    web = Asker(unit="multibinder-haproxy@web.service")
    internal = Asker(unit="multibinder-haproxy@internal.service")
    for asker, address, expected in (
        (application, "127.0.0.1:9000", "application"),
        (application, "127.0.0.1:0", "application"),
        (application, "0.0.0.0:9000", None),
        (application, "127.0.0.1:5432", "databases"),
        (web, "[::]:443", "web"),
        (web, "0.0.0.0:8080", None),
        (internal, "10.1.2.3:8080", "internal"),
        (internal, "0.0.0.0:8080", None),
        (watcher, "0.0.0.0:80", None),
        (Asker(0, frozenset([0]), ""), "0.0.0.0:5432", "root"),
    ):
        decision = policy.decide_listener(asker, "bind", spec(address))
        assert (decision.rule.name if decision.rule else None) == expected, (address, decision)
    assert policy.decide(watcher, "list").allowed
    assert not policy.decide(web, "upgrade").allowed
