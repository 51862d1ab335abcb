"""The state that outlives the binder, without a daemon."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from multibinder import TcpAddress
from multibinder.binder import durable_state, inherit, records
from multibinder.binder.durable_state import DurableState
from multibinder.binder.key import Key
from multibinder.binder.records import Record
from tests.support.stores import new_store

RECORD = Record("127.0.0.1:80", 1, inode=11, claims={"web:0": 1})


def new_state(path: str) -> DurableState:
    store = new_store()
    durable = DurableState(path, inherit.receive({}), None, lambda: store, upgraded=False)
    durable.begin(policy=False)
    return durable


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Refuse new memfds, and what would make a file longer than this many bytes."""
    pwrite = os.pwrite

    def refuse(size: int) -> None:
        def no_descriptor_is_left(*_: object) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def pwrite_within_size(descriptor: int, text: bytes, at: int) -> int:
            if at >= size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(descriptor, text[: size - at], at)

        monkeypatch.setattr(os, "memfd_create", no_descriptor_is_left)
        monkeypatch.setattr(os, "pwrite", pwrite_within_size)

    return refuse


def test_only_the_owner_of_a_lost_listener_makes_the_binder_search_for_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "state")
    own = os.geteuid()
    writer = new_state(path)
    writer.write([Record("127.0.0.1:80", 1, inode=11, claims={f"web:{own + 7}": 1})])
    searched: list[list[Record]] = []
    now = 1000.0

    def search(missing: list[Record]) -> list[object]:
        nonlocal now
        searched.append(missing)
        now += 0.5  # the host has many descriptors
        return []

    monkeypatch.setattr(durable_state, "recover", search)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    durable = DurableState(path, inherit.receive({}), None, new_store, upgraded=False)
    key = Key(TcpAddress.parse("127.0.0.1:80"))
    for _ in range(10):
        assert durable.recover(key, own + 8) is None  # a stranger
    assert searched == []
    for uid in (own + 7, own):
        durable.recover(key, uid)
        assert len(searched) == 1
        now += 20.0  # the search must not take more than a small part of the time
        durable.recover(key, uid)
        assert len(searched) == 1
        now += 10.0
        searched.clear()


def test_a_journal_that_cannot_be_replaced_is_written_further(
    tmp_path: Path, refused: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "state")
    durable = new_state(path)
    refused(10**6)
    durable.note_policy(True)
    durable.write([RECORD])
    assert records.read_file(path).records == {1: RECORD}
    monkeypatch.undo()
    with caplog.at_level(logging.INFO, "multibinder"):
        durable.catch_up()
    assert [line.getMessage() for line in caplog.records] == ["journal-lost", "journal-written"]
    [(_, descriptor)] = durable.detach_journal()
    header = records.read(descriptor).header
    assert header is not None
    assert header.policy
    os.close(descriptor)


def test_a_release_is_recorded_although_the_journal_and_the_state_file_cannot_grow(
    tmp_path: Path, refused: Callable[[int], None]
) -> None:
    path = str(tmp_path / "state")
    durable = new_state(path)
    durable.write([RECORD])
    refused(os.stat(path).st_size)
    with pytest.raises(OSError, match="Too many open files"):
        durable.write([Record("127.0.0.1:81", 2, inode=12, claims={"web:0": 1})])
    durable.note([Record(RECORD.address, 1, inode=11, released=True)])
    assert [record.released for record in records.read_file(path).records.values()] == [True]
    [(_, descriptor)] = durable.detach_journal()
    assert [(cookie, record.released) for cookie, record in records.read(descriptor).records.items()] == [(1, True)]
    os.close(descriptor)
