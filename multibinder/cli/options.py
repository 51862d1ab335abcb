"""Options and parameter types that several commands share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

import click

from multibinder import SOCKET_VARIABLE, Address, AddressError, ConfigurationError
from multibinder.wire.options import check_netns
from multibinder.wire.spread import addresses_in

_F = TypeVar("_F", bound=Callable[..., object])


#: The control socket of the unit multibinder.service. Client commands use it if nothing else is given.
DEFAULT_SOCKET = _USUAL = "/run/multibinder/control.sock"


def server_socket_option(text: str) -> Callable[[_F], _F]:
    """Return the option ``--socket`` of ``serve``, which must be given."""
    return click.option(
        "--socket", "socket_path", envvar=SOCKET_VARIABLE, required=True, metavar="PATH", show_envvar=True, help=text
    )


def socket_option(*, required: bool = True) -> Callable[[_F], _F]:
    """Return the option ``--socket`` of a client command, which receives the path as ``socket_path``.

    If it is not given, ``DEFAULT_SOCKET`` is used if it is a socket. If that is missing too, ConfigurationError is
    raised, or without ``required`` the path is None.
    """

    def find(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
        if path:
            return path
        if _is_socket(DEFAULT_SOCKET):
            return DEFAULT_SOCKET
        if required:
            raise ConfigurationError(
                f"no binder is named: --socket and {SOCKET_VARIABLE} are not set, and {DEFAULT_SOCKET} is not there; "
                "give --socket the path that 'multibinder serve --socket' has"
            )
        return None

    return click.option(
        "--socket", "socket_path", envvar=SOCKET_VARIABLE, metavar="PATH", show_envvar=True, callback=find,
        help=f"The binder's control socket. Default: {_USUAL}, if it exists.",
    )  # fmt: skip


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


class AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """An address that ``parse`` reads. An AddressError is reported as wrong usage."""

    name = "address"

    def __init__(self, parse: Callable[[str], Address] = Address.parse) -> None:
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            return self._parse(str(value))
        except AddressError as error:
            self.fail(str(error), param, ctx)


def addresses_of_texts(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Address, ...]:
    """Return the addresses that arguments name, each of which may name several. An AddressError is wrong usage."""
    try:
        return tuple(dict.fromkeys(address for text in texts for address in addresses_in(text)))
    except AddressError as error:
        raise click.BadParameter(str(error), param=param) from error


def netns_option(text: str) -> Callable[[_F], _F]:
    """Return the option ``--netns`` of a command."""

    def check(_: click.Context, param: click.Parameter, netns: str) -> str:
        try:
            return check_netns(netns)
        except AddressError as error:
            raise click.BadParameter(str(error), param=param) from error

    return click.option("--netns", default="", metavar="NETNS", callback=check, help=text)
