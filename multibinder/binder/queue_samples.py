"""Sample queues that are not empty, to find listeners from which no process accepts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

from multibinder.binder import events
from multibinder.binder.listener import Listener
from multibinder.binder.loop import Loop
from multibinder.binder.observation import Observation
from multibinder.binder.slices import Slices


class QueueSamples:
    """Finds stalled listeners among ``observations``.

    A queue is sampled every ``every_s``; its listener is stalled if the queue has not become shorter in any of
    ``samples`` samples. A queue from which a process accepts becomes shorter now and then, however many clients come.
    """

    def __init__(
        self, loop: Loop, slices: Slices, observations: Mapping[Listener, Observation], every_s: float, samples: int
    ) -> None:
        self._loop = loop
        self._slices = slices
        self._observations = observations
        self._every_s = every_s
        self._samples = samples

    def start(self, waiting: Sequence[tuple[Listener, int]]) -> None:
        """Sample these listeners, each with the length that its queue has now."""
        if waiting:
            self._call_later(waiting, self._samples)

    def _call_later(self, waiting: Sequence[tuple[Listener, int]], samples_left: int) -> None:
        # At irregular moments: a client that comes at a regular interval must not be there at each of them.
        # The module ``random`` would stay in memory for this alone.
        pause_s = self._every_s * (0.5 + int.from_bytes(os.urandom(2)) / 0xFFFF)
        self._loop.call_later(pause_s, lambda: self._slices.run(self._sample(waiting, samples_left)))

    def _sample(self, waiting: Sequence[tuple[Listener, int]], samples_left: int) -> Iterator[None]:
        unmoved = []
        for listener, longest in waiting:
            yield
            observation = self._observations.get(listener)
            if observation is None or listener.socket.fileno() < 0:
                continue
            length = listener.kind.queue(listener.socket).length
            if length < longest:
                observation.stalled_since = None
                continue
            unmoved.append((listener, length))
            if not samples_left and observation.stalled_since is None and not observation.is_orphan:
                observation.stalled_since = time.time() - self._every_s * self._samples
                events.limited(
                    events.warning,
                    "stalled",
                    listener.log_key,
                    address=listener.address,
                    waiting=length,
                    why="no process accepts from its queue",
                )
        if samples_left and unmoved:
            self._call_later(unmoved, samples_left - 1)
