"""Pending handoffs are confirmed or taken back, with the options that they set; called directly, on real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from multibinder import ListenerSpec, Options, TcpAddress
from multibinder.binder.listener import Grant, Receiver
from multibinder.binder.owner import Owner
from multibinder.binder.records import PendingHandoff
from multibinder.binder.store import ListenerStore
from tests.support.stores import new_store

ME = Owner("me", os.geteuid())


@pytest.fixture
def store() -> Iterator[ListenerStore]:
    store = new_store()
    yield store
    store.close()


@pytest.fixture
def served(store: ListenerStore) -> Grant:
    """A grant that its client has confirmed, with a backlog of 10."""
    grant = bind(store, None, backlog=10)
    store.handoffs.confirm([grant])
    return grant


def bind(
    store: ListenerStore, to: Grant | None, *, backlog: int | None = None, name: str | None = None, connection: int = 1
) -> Grant:
    address = to.listener.address if to is not None else TcpAddress.parse("127.0.0.1:0")
    [grant] = store.bind([ListenerSpec(address, Options(backlog, name=name))], [ME], receiver=Receiver(connection))
    return grant


def test_a_grant_on_which_nothing_rests_alone_is_not_pending(store: ListenerStore, served: Grant) -> None:
    assert not bind(store, served, backlog=10).is_pending


def test_a_grant_that_changes_an_option_is_pending_and_undone(store: ListenerStore, served: Grant) -> None:
    lost = bind(store, served, backlog=20, name="other")
    assert lost.is_pending
    store.handoffs.take_back([lost])
    assert served.listener.options == Options(10)
    assert served.listener.queue_limit == 10
    assert list(served.listener.claims) == [ME]


def test_a_grant_that_takes_an_option_off_is_pending_and_undone(store: ListenerStore, served: Grant) -> None:
    lost = bind(store, served)
    assert (lost.is_pending, served.listener.options.backlog, served.listener.setters) == (True, None, {})
    store.handoffs.take_back([lost])
    assert (served.listener.options, served.listener.setters) == (Options(10), {"backlog": ME})
    assert served.listener.queue_limit == 10


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_changes_that_are_taken_back_leave_the_first_value(
    store: ListenerStore, served: Grant, order: tuple[int, int]
) -> None:
    lost = [bind(store, served, backlog=20), bind(store, served, backlog=30)]
    for index in order:
        store.handoffs.take_back([lost[index]])
    assert served.listener.options.backlog == 10


def test_a_later_change_outlives_an_earlier_one_that_is_taken_back(store: ListenerStore, served: Grant) -> None:
    lost, later = bind(store, served, backlog=20), bind(store, served, backlog=30)
    store.handoffs.confirm([later])
    store.handoffs.take_back([lost])
    assert served.listener.options.backlog == 30


def test_a_value_that_a_confirmed_client_asked_for_too_stays(store: ListenerStore, served: Grant) -> None:
    lost, later = bind(store, served, backlog=20), bind(store, served, backlog=20)
    store.handoffs.confirm([later])
    store.handoffs.take_back([lost])
    assert served.listener.options.backlog == 20


def test_what_is_settled_is_not_settled_again(store: ListenerStore) -> None:
    grant = bind(store, None)
    store.handoffs.confirm([grant])
    store.handoffs.take_back([grant])
    assert grant.claim is not None
    assert (grant.claim.handoffs, grant.claim.unconfirmed) == (1, 0)
    assert not store.handoffs


def test_pending_handoffs_are_recorded_until_they_are_confirmed(store: ListenerStore, served: Grant) -> None:
    later = bind(store, served, backlog=20, connection=7)
    [pending] = served.listener.record().pending
    assert pending == PendingHandoff(str(ME), later.handoff, 7, backlog=10, setters={"backlog": str(ME)})
    store.handoffs.confirm([later])
    assert served.listener.record().pending == []


def test_pending_handoffs_of_an_earlier_binder_are_taken_back_by_their_records(
    store: ListenerStore, served: Grant
) -> None:
    bind(store, served, backlog=20, connection=7)
    record, [(_, descriptor)] = served.listener.record(), store.detach_all()
    next_version = new_store()
    next_version.restore(socket.socket(fileno=descriptor), record)
    [restored] = next_version.handoffs.of(7)
    next_version.handoffs.take_back([restored])
    assert restored.listener.options.backlog == 10
    assert restored.listener.claims[ME].handoffs == 1
    next_version.close()


def test_the_many_pending_handoffs_of_one_listener_do_not_make_its_record_long(store: ListenerStore) -> None:
    first = bind(store, None)
    for connection in range(100):
        bind(store, first, connection=connection)
    assert len(first.listener.record().pending) < 20
