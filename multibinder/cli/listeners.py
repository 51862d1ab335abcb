"""``multibinder list`` and ``multibinder release``."""

from __future__ import annotations

import sys
import time

import click
import msgspec

from multibinder import (
    SOCKET_VARIABLE,
    Address,
    AddressError,
    Client,
    ListenerStatus,
)

_socket_option = click.option(
    "--socket",
    "socket_path",
    envvar=SOCKET_VARIABLE,
    metavar="PATH",
    show_envvar=True,
    help="The control socket.",
)


@click.command("list")
@_socket_option
@click.option("--json", "as_json", is_flag=True, help="For programs: the listeners as a JSON array.")
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


@click.command("release")
@_socket_option
@click.option("--owner", default="", metavar="LABEL", help="Whose claim to drop; without it, the unlabelled one.")
@click.option("--all-owners", is_flag=True, help="Drop every claim: the port closes.")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
def release_command(socket_path: str | None, owner: str, all_owners: bool, addresses: tuple[str, ...]) -> None:
    """Give up a claim on listeners. Without any claim left, the port closes for every process that holds it.

    Exit code 1 if the binder has no such listener.

    \b
    Example:
      multibinder release --owner haproxy@web 192.0.2.1:80 '[::]:443'
    """
    try:
        wanted = [Address.parse(text) for text in addresses]
    except AddressError as error:
        raise click.BadParameter(str(error)) from error
    absent = False
    with Client(socket_path) as binder:
        held = {listener.address: listener for listener in binder.list()}
        for address in wanted:
            listener = held.get(str(address))
            for label in listener.owners if all_owners and listener else [owner]:
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


def age(seconds: float) -> str:
    """In one unit, rounded down: ``59s``, ``3h``."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
