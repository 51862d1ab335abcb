"""``multibinder policy check`` and ``multibinder policy lint``: what a policy file means, without a binder."""

from __future__ import annotations

import os
import pwd
import sys

import click
import msgspec

from multibinder import Address, AddressError, ListenerSpec, Options
from multibinder.binder.daemon import DEFAULT_POLICY
from multibinder.binder.policy import METHODS, AccessRequest, access_requests, explain
from multibinder.binder.policy_file import lint, load
from multibinder.wire.options import OPTION_NAMES


class _Asker(msgspec.Struct, frozen=True):
    uid: int
    gids: frozenset[int]
    unit: str


class _User(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    name = "user"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isascii() and text.isdigit():
            return int(text)
        try:
            return pwd.getpwnam(text).pw_uid
        except (KeyError, ValueError):
            self.fail(f"there is no user {text!r} on this host", param, ctx)


@click.group("policy")
def policy_command() -> None:
    """Who may ask the binder for what.

    A policy file has rules. The first that matches the caller (uid, gid, systemd unit, as the kernel has them), the
    method, the address and the options decides. What no rule matches is denied, but to root and to the binder's user.
    Without a policy file, whoever can connect to the control socket may ask for everything.

    \b
      [[rule]]
      name = "web"
      unit = "multibinder-haproxy@web.service"    # or uid = …, gid = …
      allow = ["bind", "release", "list"]         # or deny = …; status, upgrade; "*" for all
      address = ["*:80", "*:443"]                 # 192.0.2.0/24:80, [2001:db8::/32]:1024-65535, ipv4@*:*
      options = ["backlog", "v6only"]             # no others may be given

    Send the binder SIGHUP after a change. A file that it cannot use changes nothing, and its log says so.
    """


@policy_command.command("check")
@click.option("--policy", "path", default=DEFAULT_POLICY, show_default=True, metavar="FILE", help="The policy.")
@click.option("--uid", type=_User(), required=True, metavar="USER", help="Who would ask: a name or a number.")
@click.option("--gid", "gids", type=int, multiple=True, metavar="N",
              help="A group of the caller; again for more. Default: those that USER has on this host.")  # fmt: skip
@click.option("--unit", default="", metavar="UNIT", help="The systemd unit that the caller runs in.")
@click.option("--bind", "bind", metavar="ADDRESS", help="Would it get this one? As in 0.0.0.0:443, [::]:443.")
@click.option("--release", "release", metavar="ADDRESS", help="Might it give this one up?")
@click.option("--method", type=click.Choice(METHODS), help="Might it ask this at all?")
@click.option("--binder", "own_uid", type=_User(), default="root", show_default=True, metavar="USER",
              help="The user that the binder runs as.")  # fmt: skip
@click.option("--option", "options", type=click.Choice(OPTION_NAMES), multiple=True,
              help="With --bind: an option that it gives; again for more.")  # fmt: skip
def check_command(
    path: str,
    uid: int,
    gids: tuple[int, ...],
    unit: str,
    bind: str | None,
    release: str | None,
    method: str | None,
    own_uid: int,
    options: tuple[str, ...],
) -> None:
    """Explain what a policy decides, rule by rule. Exit code 0: allowed, 1: denied.

    \b
    Example:
      multibinder policy check --uid www-data --bind 0.0.0.0:443
    """
    if sum(given is not None for given in (bind, release, method)) != 1:
        raise click.UsageError("give one of --bind, --release and --method")
    policy = msgspec.structs.replace(load(path), own_uid=own_uid)
    asker = _Asker(uid, frozenset(gids) if gids else _groups_of(uid), unit)
    name = method or ("bind" if bind else "release")
    where = bind or release
    allowed = True
    for request in _access_requests(where, options) if where else [None]:
        if not allowed:
            break
        who = f"uid {uid}, groups {', '.join(map(str, sorted(asker.gids))) or 'none'}, {unit or 'no unit'}"
        click.echo(f"{name}{f' {request.address}' if request else ''} ({who}):")
        for line in explain(policy, asker, name, request):
            click.echo(f"  {line}")
        allowed = policy.decide(asker, name, request).allowed
    click.echo("allowed" if allowed else "denied")
    sys.exit(0 if allowed else 1)


@policy_command.command("lint")
@click.argument("path", metavar="FILE", default=DEFAULT_POLICY)
def lint_command(path: str) -> None:
    """Say what is wrong with a policy file, and what is probably not meant. Exit code 0: nothing, 1: something.

    \b
    Example:
      multibinder policy lint /etc/multibinder/policy.toml && systemctl kill -s HUP multibinder
    """
    policy = load(path)
    found = list(lint(policy))
    for sentence in found:
        click.echo(f"{path}: {sentence}")
    if not found:
        rules = len(policy.rules)
        click.echo(f"{path}: {rules} rule{'s' if rules != 1 else ''}, nothing to say about")
    sys.exit(1 if found else 0)


def _access_requests(text: str, options: tuple[str, ...]) -> list[AccessRequest | None]:
    try:
        spec = ListenerSpec(Address.parse(text), Options(v6only=True) if "v6only" in options else Options())
    except AddressError as error:
        raise click.BadParameter(str(error)) from error
    return [AccessRequest(each.address, each.options | frozenset(options)) for each in access_requests(spec)]


def _groups_of(uid: int) -> frozenset[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
