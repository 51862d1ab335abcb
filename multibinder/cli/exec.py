"""``multibinder exec``: become a program with listeners of the binder.

Usual command lines never come here: ``entry`` reads them with the standard library alone.
"""

from __future__ import annotations

import sys

import click

from multibinder import AddressError, ArgumentError, ConfigurationError
from multibinder.cli.become import become, say
from multibinder.cli.options import socket_option
from multibinder.launch import binds
from multibinder.launch.exec.failure import OWN_FAILURE
from multibinder.launch.exec.request import USUAL_WAIT_S, Request
from multibinder.launch.run.settings import Bind
from multibinder.launch.styles import STYLES
from multibinder.wire.arguments import control_path, wait_s
from multibinder.wire.options import check_owner


def _binds_of_texts(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[Bind]:
    try:
        return binds.parse_all(list(texts))
    except AddressError as error:
        raise click.BadParameter(str(error), param=param) from error


def _variables(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text or text.startswith("="):
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", param=param)
    return dict(text.split("=", 1) for text in texts)


def _owner(_: click.Context, param: click.Parameter, owner: str | None) -> str:
    try:
        return check_owner(owner) if owner else ""
    except AddressError as error:
        raise click.BadParameter(str(error), param=param) from error


def _wait(_: click.Context, param: click.Parameter, seconds: float) -> float:
    try:
        return wait_s(seconds)
    except ArgumentError as error:
        raise click.BadParameter(str(error), param=param) from error


@click.command(
    "exec",
    short_help="Become a program with listeners of the binder.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("-b", "--bind", "bound", multiple=True, required=True, metavar="ADDRESS[,OPTION=VALUE…][=NAME]",
              callback=_binds_of_texts, help="A listener, of any kind; several for a list, a range or shards. NAME is "
              "for {NAME} and LISTEN_FDNAMES. May be repeated.")  # fmt: skip
@click.option("--style", "styles", multiple=True, type=click.Choice(list(STYLES)),
              help="How the program is told of its listeners. Default: its own if it is known, else systemd; none if "
              "{NAME} is used. May be repeated.")  # fmt: skip
@click.option("--env", "variables", multiple=True, metavar="KEY=VALUE", callback=_variables,
              help="A variable for the program. {NAME} in it is the descriptor of a listener. May be "
              "repeated.")  # fmt: skip
@click.option("--owner", metavar="LABEL", callback=_owner, help="The owner of the listeners. Default: exec@PROGRAM.")
@click.option("--wait", type=float, default=USUAL_WAIT_S, show_default=True, metavar="SECONDS", callback=_wait,
              help="The time to wait for a binder that does not answer yet.")  # fmt: skip
@socket_option(required=False)
@click.option("-v", "--verbose", is_flag=True, help="Say which style is used, and which descriptor each listener has.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT]...")
def exec_command(
    bound: list[Bind],
    styles: tuple[str, ...],
    variables: dict[str, str],
    owner: str,
    wait: float,
    socket_path: str | None,
    verbose: bool,
    command: tuple[str, ...],
) -> None:
    """Become a program with listeners of the binder.

    The program gets the sockets in its own way, in this PID. They outlive it: clients wait until it is started again.
    {NAME} in its arguments is the descriptor of the listener with this name.

    \b
    Exit codes:
      125  It was not started: the binder refused, or did not answer.
      126  COMMAND cannot be executed.
      127  There is no COMMAND.
      else that of COMMAND.

    \b
    Example:
      multibinder exec -b 0.0.0.0:8000 -- gunicorn app:app
      multibinder exec -b '[::]:8000,backlog=8192=web' -- uvicorn --fd {web} app:app
      multibinder exec -b 0.0.0.0:80 -- nginx -g 'daemon off;'
    """
    try:
        path = control_path(socket_path)
    except ConfigurationError as error:
        say("error", str(error))
        sys.exit(OWN_FAILURE)
    become(
        Request(
            path=path,
            binds=[(bind.name, bind.slots) for bind in bound],
            command=command,
            styles=styles,
            variables=variables,
            owner=owner,
            wait_s=wait,
            verbose=verbose,
        )
    )
