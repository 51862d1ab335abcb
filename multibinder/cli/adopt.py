"""``multibinder adopt``: let the binder hold the listeners of a program that has opened them itself."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import Counter
from collections.abc import Collection, Sequence

import click
import msgspec

from multibinder import Address, Client, ConfigurationError, MultibinderError
from multibinder.cli.options import AddressType, socket_option
from multibinder.cli.say import say, say_json
from multibinder.cli.wording import NO_LABEL, count
from multibinder.kernel import bpf, reuseport
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.process import is_alive, parent_of, printable, processes_of_unit, with_descendants
from multibinder.kernel.socket_options import cookie_of
from multibinder.observe.adoptable import Adoptable, Found, find
from multibinder.observe.holders import Process
from multibinder.wire import kinds
from multibinder.wire.adopt_params import ADOPT, Adopted
from multibinder.wire.adoption import Offer
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import check_optional_owner

#: A row of the table names so many processes of a program.
_NAMED = 4


class Row(msgspec.Struct, frozen=True):
    """All sockets on one address, as the table and ``--json`` show them.

    ``state`` is ``free`` (it can be adopted), ``held`` (by the binder already) or ``obstacle``, which has the reason.
    """

    address: str
    kind: str | None
    sockets: int
    netns: int
    holders: list[Process]
    state: str
    obstacle: str
    differs: list[str]


class AdoptedAddress(msgspec.Struct, frozen=True):
    """What ``--json`` shows of an address. ``outcome`` is ``adopted``, from ``holders``, or ``held``: it was before."""

    address: str
    outcome: str
    holders: list[Process]


@click.command("adopt", short_help="Take over the listeners of a running server.")
@socket_option(required=False)
@click.option("--pid", "pids", type=click.IntRange(1), multiple=True, metavar="N",
              help="All listeners of this process and of those below it. Can be given several times.")  # fmt: skip
@click.option("--unit", "units", multiple=True, metavar="NAME", help="All listeners of this systemd unit, as "
              "nginx.service.")  # fmt: skip
@click.option("--owner", default="", metavar="LABEL", help="The owner of the claims: the label with which the next "
              "server binds, or LABEL:UID for one of another user. Default: the claim without a label.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be adopted, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array: the table with --dry-run, else each "
              "address with its outcome and the processes that had it.")  # fmt: skip
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...", type=AddressType())
def adopt_command(
    socket_path: str | None,
    pids: tuple[int, ...],
    units: tuple[str, ...],
    owner: str,
    dry_run: bool,
    as_json: bool,
    addresses: tuple[Address, ...],
) -> None:
    """Let the binder hold the listeners of a running server that has opened them itself.

    The server goes on undisturbed. When it ends, its ports stay open, clients wait, and the next server gets the same
    sockets from the binder. All sockets that share an address are taken (SO_REUSEPORT), also those of other processes.
    Run it as root: it copies the sockets with its own rights (CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH).

    \b
    Exit codes:
      0  The binder holds every listener that was asked for. With --dry-run: it could.
      1  There is no such listener, or it cannot be adopted, or the binder refused. Nothing was adopted.
      2  Wrong usage.

    \b
    Example:
      multibinder adopt --dry-run --unit nginx.service
      multibinder adopt --owner haproxy@web 0.0.0.0:80 '[::]:443'
    """
    if not (addresses or pids or units):
        raise click.UsageError("name the listeners: give an ADDRESS, --pid or --unit")
    check_optional_owner(owner)
    with contextlib.ExitStack() as stack:
        binder = _connect(stack, socket_path, required=not dry_run)
        found = find(addresses, _processes(pids, units), _never_holders(binder))
        stack.callback(found.close)
        held = {each.cookie for each in binder.list()} if binder else set()
        rows = _rows(found.listeners, held)
        missing = _missing(addresses, found, binder)
        if as_json and dry_run:
            say_json(rows)
        elif dry_run and rows:
            _print_table(rows)
        problems = _problems(found, missing, rows, addresses)
        for problem in problems:
            say(f"multibinder: {problem}", err=True)
        if problems or dry_run:
            sys.exit(1 if problems else 0)
        assert binder is not None  # noqa: S101 (required)
        _adopt(binder, found.listeners, rows, owner, held, as_json=as_json)


def _connect(stack: contextlib.ExitStack, socket_path: str | None, *, required: bool) -> Client | None:
    """Return a client of the binder. Without ``required``, None if there is no binder; that is said."""
    try:
        binder = stack.enter_context(Client(socket_path))
        hello = binder.hello()
    except MultibinderError as error:
        if required:
            raise
        why = "no binder is named" if isinstance(error, ConfigurationError) else str(error)
        say(f"multibinder: {why}; what it holds already is not known", err=True)
        return None
    if ADOPT not in hello.capabilities:
        raise ConfigurationError(
            f"this binder ({hello.version}) cannot adopt sockets: upgrade it first ('multibinder upgrade')"
        )
    return binder


def _processes(pids: Sequence[int], units: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for pid in pids:
        if not is_alive(pid) and not os.path.exists(f"/proc/{pid}/task"):
            raise click.BadParameter(f"there is no process {pid}", param_hint="--pid")
        found |= with_descendants(pid)
    for unit in units:
        name = unit if "." in unit else f"{unit}.service"
        if not (of_unit := processes_of_unit(name)):
            raise click.BadParameter(f"no process runs in {name}", param_hint="--unit")
        found |= of_unit
    return found


def _never_holders(binder: Client | None) -> set[int]:
    """Return the PIDs of the binder and its guard, whose sockets are held already."""
    if binder is None:
        return set()
    pid = binder.hello().pid
    parent = parent_of(pid)
    return {pid, parent} if parent > 1 else {pid}


def _rows(listeners: Sequence[Adoptable], held: Collection[int]) -> list[Row]:
    """Return a row for each group of sockets that share address, namespace and state, in the order of addresses."""
    rows: dict[tuple[str, int, str, str], Row] = {}
    for each in listeners:
        is_held = each.socket is not None and cookie_of(each.socket) in held
        state = "held" if is_held else "obstacle" if each.obstacle else "free"
        key = (each.shown, each.netns, state, each.obstacle)
        row = rows.get(key)
        kind = kinds.of_address(each.address).name if each.address is not None else None
        holders = {holder.pid: holder for holder in [*(row.holders if row else ()), *each.holders]}
        rows[key] = Row(
            each.shown,
            kind,
            row.sockets + 1 if row else 1,
            each.netns,
            [holders[pid] for pid in sorted(holders)],
            state,
            "" if is_held else each.obstacle,
            list(dict.fromkeys([*(row.differs if row else ()), *each.differs])),
        )
    return list(rows.values())


def _missing(addresses: Sequence[Address], found: Found, binder: Client | None) -> list[str]:
    """Return a sentence for each address on which no process has a listener."""
    known = {each.address for each in found.listeners}
    of_binder = {each.address for each in binder.list()} if binder else set()
    missing = []
    for address in addresses:
        if address in known:
            continue
        if str(address) in of_binder:
            say(f"{address}: held already, and no other process has it open")
        else:
            missing.append(f"{address}: no process that this user can see has a listener there")
    return missing


def _problems(found: Found, missing: Sequence[str], rows: Sequence[Row], addresses: Sequence[Address]) -> list[str]:
    """Return why not all can be adopted that was asked for."""
    problems = [*missing]
    asked = set(map(str, addresses))
    problems += [f"{row.address}: {row.obstacle}" for row in rows if row.state == "obstacle" and row.address in asked]
    if found.unreadable:
        names = ", ".join(map(str, found.unreadable[:_NAMED]))
        more = f" and {len(found.unreadable) - _NAMED} more" if len(found.unreadable) > _NAMED else ""
        problems.append(f"the descriptors of {names}{more} cannot be read: run this as root")
    if not rows and not problems and not addresses:
        problems.append("these processes have no listener")
    return problems


def _adopt(
    binder: Client,
    listeners: Sequence[Adoptable],
    rows: Sequence[Row],
    owner: str,
    held: Collection[int],
    *,
    as_json: bool,
) -> None:
    for row in rows:
        if row.obstacle:
            say(f"{row.address}: left alone: {row.obstacle}", err=True)
        for sentence in row.differs if row.state == "free" else ():
            say(f"{row.address}: note: {sentence}", err=True)
    wanted = _offers(listeners)
    former: dict[int, int] = {}
    on_one_address = Counter((each.spec.address, each.spec.netns) for each in wanted)

    def give_to(uid: int) -> None:
        # The kernel lets sockets share a port only if they belong to one user (socket(7), SO_REUSEPORT).
        for spec, sock, *_ in wanted:
            if cookie_of(sock) in held:
                continue
            kinds.of_address(spec.address).prepare_adopted(sock, spec.address)
            if (was := os.fstat(sock.fileno()).st_uid) != uid:
                former[sock.fileno()] = was
                with contextlib.suppress(PermissionError):
                    os.fchown(sock.fileno(), uid, -1)
            if on_one_address[spec.address, spec.netns] == 1:
                with contextlib.suppress(OSError):
                    kinds.of_address(spec.address).take_alone(sock, spec.address)

    try:
        adopted = binder.adopt(wanted, owner=owner, before_sending=give_to)
    except BaseException:
        for descriptor, uid in former.items():
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, uid, -1)
        raise
    if as_json:
        say_json([_outcome(address, outcomes, rows) for address, outcomes in _by_address(adopted).items()])
    for address, outcomes in _by_address(adopted).items():
        if not as_json:
            say(_sentence(address, outcomes, rows, owner))
        for warning in {each.warning for each in outcomes if each.warning}:
            say(f"{address}: warning: {warning}", err=True)


def _offers(listeners: Sequence[Adoptable]) -> list[Offer]:
    """Return what the binder is to hold. A group of sockets gets the program that moves clients, if possible."""
    offers: list[Offer] = []
    for each in listeners:
        if each.address is None or each.socket is None or each.obstacle:
            continue
        netns = f"cookie:{each.netns}" if each.address.is_in_netns else ""
        spec = ListenerSpec(each.address, netns=netns)
        same = [other for other in offers if (other.spec.address, other.spec.netns) == (spec.address, spec.netns)]
        moves_clients = same[0].moves_clients if len(same) > 1 else bool(same) and let_clients_move(each.socket)
        if len(same) == 1:
            offers[offers.index(same[0])] = same[0]._replace(moves_clients=moves_clients)
        offers.append(Offer(spec, each.socket, [holder.pid for holder in each.holders], moves_clients))
    return offers


def let_clients_move(member: socket.socket) -> bool:
    """Let the kernel give the clients of a socket that stops to another one of its group. Return whether it will.

    Else clients in its queue are lost when the process of one socket ends and those of the others go on.
    """
    if member.type != socket.SOCK_STREAM:
        return False
    try:
        program = bpf.load_migrating_program()
    except OSError:
        return False
    try:
        reuseport.attach_migration(member, program)
    except OSError:
        return False
    finally:
        os.close(program)
    return True


def _by_address(adopted: Sequence[Adopted]) -> dict[str, list[Adopted]]:
    grouped: dict[str, list[Adopted]] = {}
    for each in adopted:
        grouped.setdefault(each.address, []).append(each)
    return grouped


def _outcome(address: str, outcomes: Sequence[Adopted], rows: Sequence[Row]) -> AdoptedAddress:
    is_new = any(each.outcome == "adopted" for each in outcomes)
    holders = next((row.holders for row in rows if row.address == address and row.state == "free"), [])
    return AdoptedAddress(address, "adopted" if is_new else "held", holders if is_new else [])


def _sentence(address: str, outcomes: Sequence[Adopted], rows: Sequence[Row], owner: str) -> str:
    new = sum(each.outcome == "adopted" for each in outcomes)
    if not new:
        return f"{address}: held already"
    holders = next((row.holders for row in rows if row.address == address and row.state == "free"), [])
    number = f" ({count(new, 'socket')})" if new > 1 else ""
    return f"{address}{number}: adopted from {_names(holders)}, for {owner or NO_LABEL}"


def _names(holders: Sequence[Process]) -> str:
    """Return the programs and their PIDs: ``nginx (pid 812, 813)``."""
    pids: dict[str, list[int]] = {}
    for holder in holders:
        pids.setdefault(holder.name, []).append(holder.pid)

    def of(name: str) -> str:
        more = f" and {len(pids[name]) - _NAMED} more" if len(pids[name]) > _NAMED else ""
        return f"{name} (pid {', '.join(map(str, pids[name][:_NAMED]))}{more})"

    return ", ".join(map(of, pids)) or "a process that has ended"


def _print_table(rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ours = own_cookie()
    words = {"free": "can be adopted", "held": "held already"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("ADDRESS", "SOCKETS", "PROGRAM", "WHAT WOULD HAPPEN"):
        table.add_column(heading, justify="right" if heading == "SOCKETS" else "left")
    for row in rows:
        outcome = words.get(row.state) or f"left alone: {row.obstacle}"
        table.add_row(
            Text(printable(row.address + (f" (netns cookie:{row.netns})" if row.netns != ours else ""))),
            str(row.sockets),
            Text(printable(_names(row.holders))),
            Text(printable("; ".join([outcome, *row.differs]))),
        )
    Console().print(table)
