from __future__ import annotations

import inspect

import pytest

from multibinder import OPTION_NAMES, AddressError, ListenerSpec, Options, TcpAddress
from multibinder.wire.options import check_label


@pytest.mark.parametrize("backlog", [1, 128, 2**31 - 1])
def test_a_backlog_that_listen_accepts_is_accepted(backlog: int) -> None:
    assert Options(backlog=backlog).backlog == backlog


@pytest.mark.parametrize("backlog", [0, -1, 2**31])
def test_a_backlog_that_listen_would_misread_is_refused(backlog: int) -> None:
    with pytest.raises(AddressError, match=rf"backlog {backlog} is out of range: 1 to 2147483647 connections"):
        Options(backlog=backlog)


@pytest.mark.parametrize("label", ["a", "haproxy@web", "a/b.c-d_e+f@G9", "x" * 128])
def test_labels_that_are_safe_everywhere_are_accepted(label: str) -> None:
    assert check_label("owner", label) == label


@pytest.mark.parametrize("label", ["", "x" * 129, "two words", "new\nline", "a\n", 'quote"', "colon:", "ünï", "a\0b"])
def test_labels_that_would_break_a_log_line_or_a_file_name_are_refused(label: str) -> None:
    with pytest.raises(AddressError, match="1 to 128 of A-Z a-z 0-9"):
        check_label("owner", label)
    with pytest.raises(AddressError, match=r"^name "):
        Options(name=label)


def test_v6only_on_an_ipv4_address_is_refused() -> None:
    with pytest.raises(AddressError, match="v6only has a meaning for IPv6 addresses only"):
        ListenerSpec(TcpAddress.parse("127.0.0.1:80"), Options(v6only=True))


def test_the_public_list_of_option_names_agrees_with_options() -> None:
    assert tuple(inspect.signature(Options).parameters) == OPTION_NAMES
