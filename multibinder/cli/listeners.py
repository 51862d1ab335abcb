"""``multibinder list`` and ``multibinder release``."""

from __future__ import annotations

import sys
import time

import click
import msgspec

from multibinder import Address, Client, ListenerStatus
from multibinder.cli.options import AddressType, socket_option
from multibinder.cli.wording import age


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
        click.echo(msgspec.json.format(msgspec.json.encode(listeners)))
    elif not listeners:
        click.echo("No listeners.", err=True)
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
            labels = listener.owners if all_owners and listener else []
            for label in labels or [owner]:
                [outcome] = binder.release([address], owner=label)
            kept = f", by {', '.join(label or 'a client without a label' for label in outcome.owners)}"
            click.echo(f"{outcome.address}: {outcome.outcome}{kept if outcome.owners else ''}")
            absent |= outcome.outcome == "absent"
    sys.exit(1 if absent else 0)


def _print_table(listeners: list[ListenerStatus]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

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
            listener.address + name,
            ", ".join(label or "-" for label in listener.owners),
            str(listener.backlog),
            str(listener.handoffs),
            age(time.time() - listener.created),
        )
    Console().print(table)
