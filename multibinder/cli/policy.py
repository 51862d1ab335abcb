"""``multibinder policy check`` and ``multibinder policy lint``: explain a policy file without a binder."""

from __future__ import annotations

import os
import pwd
import sys
from typing import Any

import click
import msgspec

from multibinder import Address, AddressError, ListenerSpec, Options
from multibinder.binder.namespace_names import OWN
from multibinder.binder.netns_patterns import ANY, WILDCARDS, parse_netns
from multibinder.binder.owner import GUEST_UID
from multibinder.binder.policy import METHODS, AccessRequest, access_requests, explain
from multibinder.binder.policy_file import GUEST, lint, load
from multibinder.binder.settings import DEFAULT_POLICY
from multibinder.cli.say import say
from multibinder.cli.wording import count
from multibinder.wire.options import OPTION_NAMES


class _Asker(msgspec.Struct, frozen=True):
    """The caller that the policy is asked about."""

    uid: int
    gids: frozenset[int]
    unit: str


class CheckOptions(msgspec.Struct, frozen=True):
    """The options of ``multibinder policy check`` as click parsed them. A field has the name of its parameter."""

    path: str
    uid: int
    gids: tuple[int, ...]
    unit: str
    bind: str | None
    release: str | None
    method: str | None
    own_uid: int
    options: tuple[str, ...]
    netns: str


class _UserType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """A user's name on this host, a uid, or ``@guest``."""

    name = "user"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == GUEST:
            return GUEST_UID
        if text.isascii() and text.isdigit():
            return int(text)
        try:
            return pwd.getpwnam(text).pw_uid
        except (KeyError, ValueError):
            self.fail(f"there is no user {text!r} on this host", param, ctx)


@click.group("policy", short_help="Check and explain the policy: which client may ask for what.")
def policy_command() -> None:
    """Check and explain the policy, which says which client may ask the binder for what.

    A policy file is a list of rules. The first rule that matches decides. A rule matches by the caller (its uid, gid
    and systemd unit, as the kernel reports them), the method, the address and the options. A request that no rule
    matches is denied, unless root or the binder's own user asks. Without a policy file, every client that can connect
    to the control socket may ask for everything.

    \b
      [[rule]]
      name = "web"
      unit = "multibinder-haproxy@web.service"    # or uid = ..., gid = ...
      allow = ["bind", "release", "list"]         # or deny = ...; also "status", "upgrade", "*"
      address = ["*:80", "*:443"]                 # 192.0.2.0/24:80, [2001:db8::/32]:1024-65535, ipv4@*:*
      options = ["backlog", "v6only"]             # a request with another option does not match
      netns = [".", "blue"]                       # network namespaces; default: the binder's own (".")

    Send SIGHUP to the binder after a change. If the file is not usable, the binder keeps its present policy and logs
    the reason.
    """


@policy_command.command("check", short_help="Explain rule by rule what the policy decides for a request.")
@click.option("--policy", "path", default=DEFAULT_POLICY, show_default=True, metavar="FILE", help="The policy file.")
@click.option("--uid", type=_UserType(), required=True, metavar="USER",
              help="The caller: a user's name or uid; @guest for clients of other PID namespaces.")  # fmt: skip
@click.option("--gid", "gids", type=int, multiple=True, metavar="N",
              help="A group of the caller. May be repeated. Default: the groups of USER on this host.")  # fmt: skip
@click.option("--unit", default="", metavar="UNIT", help="The systemd unit that the caller runs in.")
@click.option("--bind", "bind", metavar="ADDRESS", help="Ask for a bind to this address, as in 0.0.0.0:443, [::]:443.")
@click.option("--release", "release", metavar="ADDRESS", help="Ask for a release of this address.")
@click.option("--netns", default="", metavar="NAME|PATH",
              help="The network namespace of the address, as a rule names it. Default: the binder's own.")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), help="Ask for this method, at any address.")
@click.option("--binder", "own_uid", type=_UserType(), default="root", show_default=True, metavar="USER",
              help="The user that the binder runs as.")  # fmt: skip
@click.option("--option", "options", type=click.Choice(OPTION_NAMES), multiple=True,
              help="An option of the bind. May be repeated.")  # fmt: skip
def check_command(**parameters: Any) -> None:
    """Explain rule by rule what the policy decides for a request.

    \b
    Exit codes:
      0  Allowed.
      1  Denied, or the policy file is not usable.

    \b
    Example:
      multibinder policy check --uid www-data --bind 0.0.0.0:443
    """
    asked = CheckOptions(**parameters)
    if sum(given is not None for given in (asked.bind, asked.release, asked.method)) != 1:
        raise click.UsageError("give one of --bind, --release and --method")
    policy = msgspec.structs.replace(load(asked.path), own_uid=asked.own_uid)
    asker = _Asker(asked.uid, frozenset(asked.gids) if asked.gids else _groups_of(asked.uid), asked.unit)
    who = f"uid {asker.uid}, groups {', '.join(map(str, sorted(asker.gids))) or 'none'}, {asker.unit or 'no unit'}"
    method = asked.method or ("bind" if asked.bind else "release")
    address = asked.bind or asked.release
    allowed = True
    for request in _access_requests(address, asked) if address else [None]:
        if not allowed:
            break
        where = f" in the network namespace {asked.netns}" if request and asked.netns else ""
        say(f"{method}{f' {request.address}' if request else ''}{where} ({who}):")
        for line in explain(policy, asker, method, request):
            say(f"  {line}")
        allowed = policy.decide(asker, method, request).allowed
    say("allowed" if allowed else "denied")
    sys.exit(0 if allowed else 1)


@policy_command.command("lint", short_help="Report errors and probable mistakes in a policy file.")
@click.argument("path", metavar="FILE", default=DEFAULT_POLICY)
def lint_command(path: str) -> None:
    """Report errors and probable mistakes in a policy file.

    \b
    Exit codes:
      0  There are none.
      1  There are some.

    \b
    Example:
      multibinder policy lint /etc/multibinder/policy.toml && systemctl kill -s HUP multibinder
    """
    policy = load(path)
    found = list(lint(policy))
    for sentence in found:
        say(f"{path}: {sentence}")
    if not found:
        say(f"{path}: {count(len(policy.rules), 'rule')}, nothing to report")
    sys.exit(1 if found else 0)


def _access_requests(text: str, asked: CheckOptions) -> list[AccessRequest | None]:
    options = asked.options
    try:
        netns = parse_netns(asked.netns or OWN)
        spec = ListenerSpec(Address.parse(text), Options(v6only=True) if "v6only" in options else Options())
    except AddressError as error:
        raise click.BadParameter(str(error)) from error
    if netns == ANY or WILDCARDS & set(netns):
        raise click.BadParameter(f"{netns} is a pattern: name one network namespace")
    return [
        AccessRequest(each.address, each.options | frozenset(options), netns=frozenset([netns]))
        for each in access_requests(spec)
    ]


def _groups_of(uid: int) -> frozenset[int]:
    if uid == GUEST_UID:
        return frozenset([GUEST_UID])
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
