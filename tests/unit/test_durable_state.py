"""The state that outlives the binder, without a daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from multibinder.binder import inherit, records
from multibinder.binder.durable_state import DurableState
from multibinder.binder.records import Record
from tests.support.stores import new_store

RECORD = Record("127.0.0.1:80", 1, inode=11, claims={"web:0": 1})


def test_a_journal_that_cannot_be_replaced_is_written_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "state")
    store = new_store()
    durable = DurableState(path, inherit.receive({}), None, lambda: store, upgraded=False)
    durable.begin(policy=False)

    def no_descriptor_is_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as shortage:
        shortage.setattr(os, "memfd_create", no_descriptor_is_left)
        with pytest.raises(OSError, match="Too many open files"):
            durable.note_policy(True)
    durable.write([RECORD])
    assert records.read_file(path).records == {1: RECORD}
    os.close(durable.detach_journal()[1])
