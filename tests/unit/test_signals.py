"""Signals are passed on to the next program in this process."""

from __future__ import annotations

import signal

from multibinder.binder.signals import SignalQueue


def test_a_queue_that_cannot_be_read_any_more_is_closed_without_an_error() -> None:
    before, mask = signal.getsignal(signal.SIGUSR2), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    queue = SignalQueue([signal.SIGUSR2])
    queue._reading.close()
    try:
        queue.close()
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
