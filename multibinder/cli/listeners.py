"""``multibinder list``, ``multibinder release`` and ``multibinder move``."""

from __future__ import annotations

import math
import pwd
import sys
import time

import click

from multibinder import Address, Client, ListenerSpec, ListenerStatus, Released
from multibinder.cli.options import addresses_of_texts, netns_option, socket_option
from multibinder.cli.say import say, say_json
from multibinder.cli.wording import NO_LABEL, age, owner_names
from multibinder.kernel.process import printable
from multibinder.wire.arguments import spec_of
from multibinder.wire.release_params import LONGEST_DRAIN_S


@click.command("list", short_help="Show every listener that the binder holds.")
@socket_option()
@click.option("--json", "as_json", is_flag=True, help="Print the listeners as a JSON array.")
def list_command(socket_path: str | None, as_json: bool) -> None:
    """Show every listener that the binder holds.

    \b
    Example:
      multibinder list --json | jq -r '.[].address'
    """
    with Client(socket_path) as binder:
        listeners = binder.list()
    if as_json:
        say_json(listeners)
    elif not listeners:
        say("No listeners.", err=True)
    else:
        _print_table(listeners)


@click.command("release", short_help="Give up a claim on listeners; without a claim, the port closes.")
@socket_option()
@click.option("--owner", default="", metavar="LABEL", help="The owner whose claim is given up. Default: the claim "
              "without a label.")  # fmt: skip
@click.option("--all-owners", is_flag=True, help="Give up every claim, so that the port closes.")
@click.option("--drain", default=0.0, metavar="SECONDS", type=click.FloatRange(0, LONGEST_DRAIN_S),
              help="Let no new client in, and close a port when its server has accepted those that wait, or after this "
              "time. Default: 0, which resets them.")  # fmt: skip
@click.option("--leave-open", is_flag=True,
              help="Let go of the listeners without closing the ports, for the way back to a server without a binder. "
              "For root and the binder's own user.")  # fmt: skip
@netns_option("The network namespace of the addresses: a name, a path, or a PID.")
@click.argument("texts", nargs=-1, required=True, metavar="ADDRESS...", callback=addresses_of_texts)
def release_command(
    socket_path: str | None,
    owner: str,
    all_owners: bool,
    drain: float,
    leave_open: bool,
    netns: str,
    texts: tuple[Address, ...],
) -> None:
    """Give up a claim on listeners.

    A listener without any claim left is closed, for every process that holds it. An address means all of its shards; it
    may be of any kind, a list with commas, or a range of ports. With --leave-open the port stays open for the processes
    that have it, and closes when the last of them ends.

    \b
    Exit codes:
      0  The claim on every listener is given up.
      1  The binder has no such listener, the owner has no claim on it, or the binder refused.

    \b
    Example:
      multibinder release --owner haproxy@web --drain 30 192.0.2.1:80 '[::]:443'
      multibinder release --owner app unix@/run/app.sock 0.0.0.0:8000-8009
    """
    if math.isnan(drain):
        raise click.BadParameter("NaN is no number of seconds", param_hint="--drain")
    if leave_open and drain:
        raise click.UsageError("a listener that is left open does not drain: leave out --drain, or --leave-open")
    with Client(socket_path) as binder:
        held: dict[str, list[ListenerStatus]] = {}
        for listener in binder.list():
            held.setdefault(listener.address, []).append(listener)
        # One request for each owner, so that all listeners drain at the same time.
        by_owner: dict[str, list[ListenerSpec]] = {}
        for address in texts:
            those = [each for each in held.get(str(address), ()) if bool(each.netns) == bool(netns)]
            claims = dict.fromkeys(claim for each in those for claim in _claims_of(each)) if all_owners else {}
            for each in claims or [owner]:
                # The first one stands for all shards.
                by_owner.setdefault(each, []).append(spec_of(address, netns, whole=True))
        outcomes: dict[Address, Released] = {}
        for each, its in by_owner.items():
            released = binder.release(its, owner=each, drain=drain, leave_open=leave_open)
            outcomes |= zip([spec.address for spec in its], released, strict=True)
    for address in texts:
        say(_sentence(outcomes[address], owner))
    given_up = all(each.outcome != "absent" and each.had_claim for each in outcomes.values())
    sys.exit(0 if given_up else 1)


@click.command("move", short_help="Give an owner's claims to another user.")
@socket_option()
@click.argument("owner", metavar="LABEL:UID")
@click.argument("user", metavar="USER")
def move_command(socket_path: str | None, owner: str, user: str) -> None:
    """Give the claims and names of an owner to another user, as after a change of User= in a service's unit.

    Only root and the binder's own user may. Without it, the service binds as its new user, and the claims of the old
    one keep the ports open that it no longer binds. 'multibinder list' shows owners; USER is a name or a number.

    \b
    Exit codes:
      0  The claims belong to USER now.
      1  That owner has no claim, or the binder refused.

    \b
    Example:
      multibinder move haproxy@web:107 haproxy
    """
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise click.BadParameter(f"there is no user {user}", param_hint="USER") from None
    with Client(socket_path) as binder:
        [moved] = binder.move([(owner, uid)])
    for address in moved.addresses:
        say(f"{address}: moved to uid {uid}")
    if not moved.addresses:
        say(f"{owner} has no claim; 'multibinder list --json' shows label and uid of each", err=True)
    sys.exit(0 if moved.addresses else 1)


def _claims_of(listener: ListenerStatus) -> list[str]:
    """Return each claim as the method ``release`` names it. A binder of 0.1 tells the labels alone."""
    named = [f"{claim.label}:{claim.uid}" for claim in listener.claims] or listener.owners
    return named or [""]  # a listener without a claim is closed too


def _sentence(outcome: Released, owner: str) -> str:
    names = owner_names(outcome.claims) if outcome.claims else [label or NO_LABEL for label in outcome.owners]
    sentence = f"{outcome.address}: {outcome.outcome.replace('-', ' ')}"
    if names:
        sentence += f", by {', '.join(names)}"
    if not outcome.had_claim:
        sentence += f"; not released: {owner or NO_LABEL} has no claim"
    if outcome.reset:
        sentence += f"; {outcome.reset} waiting client{'s were' if outcome.reset > 1 else ' was'} reset"
    return sentence


def _owners(listener: ListenerStatus) -> str:
    if listener.draining:
        return "(draining)"
    return ", ".join(owner_names(listener.claims, "-") or [label or "-" for label in listener.owners])


def _print_table(listeners: list[ListenerStatus]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (
        ("ADDRESS", "left"),
        ("OWNERS", "left"),
        ("BACKLOG", "right"),
        ("HANDOFFS", "right"),
        ("AGE", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading == "ADDRESS")  # type: ignore[arg-type]
    for listener in listeners:
        name = f" ({listener.name})" if listener.name else ""
        table.add_row(
            Text(printable(listener.key + name)),
            Text(printable(_owners(listener))),
            "-" if listener.backlog is None else str(listener.backlog),
            str(listener.handoffs),
            age(time.time() - listener.created),
        )
    Console().print(table)
