"""``multibinder release``, asked with a binder that answers from memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from multibinder import Address, ListenerStatus, Released
from multibinder.cli import listeners
from multibinder.cli.listeners import release_command


class BinderInMemory:
    """A binder with one listener that has these owners. It notes the labels that it is asked to release."""

    def __init__(self, *owners: str) -> None:
        self.owners = list(owners)
        self.released: list[str] = []

    def __enter__(self) -> BinderInMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def list(self) -> Sequence[ListenerStatus]:
        return [ListenerStatus("127.0.0.1:80", None, self.owners, 1, None, None, 0, 0.0, 1)]

    def release(
        self, addresses: Sequence[Address], *, owner: str, drain: float, leave_open: bool
    ) -> Sequence[Released]:
        self.released.append(owner)
        return [Released(str(addresses[0]), "closed")]


@pytest.mark.parametrize(("owners", "asked"), [(("a", ""), ["a", ""]), ((), [""])])
def test_all_owners_gives_up_every_claim_and_closes_a_listener_without_one(
    monkeypatch: pytest.MonkeyPatch, owners: tuple[str, ...], asked: list[str]
) -> None:
    binder = BinderInMemory(*owners)
    monkeypatch.setattr(listeners, "Client", lambda path: binder)
    done = CliRunner().invoke(release_command, ["--socket", "unused", "--all-owners", "127.0.0.1:80"])
    assert (done.exit_code, done.output) == (0, "127.0.0.1:80: closed\n")
    assert binder.released == asked
