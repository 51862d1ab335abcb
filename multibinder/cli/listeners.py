"""``multibinder list``, ``multibinder release`` and ``multibinder move``."""

from __future__ import annotations

import pwd
import sys
import time

import click

from multibinder import Address, Client, ListenerStatus, Released
from multibinder.cli.options import AddressType, socket_option
from multibinder.cli.say import say, say_json
from multibinder.cli.wording import NO_LABEL, age, owner_names
from multibinder.kernel.process import printable


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
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...", type=AddressType())
def release_command(socket_path: str | None, owner: str, all_owners: bool, addresses: tuple[Address, ...]) -> None:
    """Give up a claim on listeners.

    A listener without any claim left is closed, for every process that holds it.

    \b
    Exit codes:
      0  The claim on every listener is given up.
      1  The binder has no such listener, or it refused.

    \b
    Example:
      multibinder release --owner haproxy@web 192.0.2.1:80 '[::]:443'
    """
    absent = False
    with Client(socket_path) as binder:
        held = {listener.address: listener for listener in binder.list()}
        for address in addresses:
            listener = held.get(str(address))
            for each in _claims_of(listener) if all_owners and listener else [owner]:
                [outcome] = binder.release([address], owner=each)
            say(f"{outcome.address}: {outcome.outcome}{_kept_by(outcome)}")
            absent |= outcome.outcome == "absent"
    sys.exit(1 if absent else 0)


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


def _kept_by(outcome: Released) -> str:
    names = owner_names(outcome.claims) if outcome.claims else [label or NO_LABEL for label in outcome.owners]
    kept = f", by {', '.join(names)}" if names else ""
    return kept if outcome.had_claim else f"{kept}; the owner that you named has no claim"


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
            Text(printable(listener.address + name)),
            Text(
                printable(", ".join(owner_names(listener.claims, "-") or [label or "-" for label in listener.owners]))
            ),
            str(listener.backlog),
            str(listener.handoffs),
            age(time.time() - listener.created),
        )
    Console().print(table)
