"""Options and parameter types that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from multibinder import SOCKET_VARIABLE, Address, AddressError

_F = TypeVar("_F", bound=Callable[..., object])


def socket_option(text: str = "The binder's control socket.", *, required: bool = False) -> Callable[[_F], _F]:
    """Return the option ``--socket``, which the command receives as ``socket_path``."""
    return click.option(
        "--socket", "socket_path", envvar=SOCKET_VARIABLE, required=required, metavar="PATH", show_envvar=True,
        help=text,
    )  # fmt: skip


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
