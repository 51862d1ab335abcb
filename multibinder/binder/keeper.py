"""The keeper of sockets while the binder is dead: systemd's descriptor store, or the guard, by the same protocol.

sd_notify(3): FDSTORE=1 stores a descriptor under FDNAME=, FDSTOREREMOVE=1 removes it. BARRIER=1 carries a descriptor
that the keeper closes when it has processed all earlier messages. $FDSTORE is the number of descriptors that the keeper
takes (set by systemd 254, the guard, our unit). The guard answers a barrier with what it has stored
(``descriptor_store``); systemd does not tell.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, MutableMapping, Sequence

from multibinder.binder import events
from multibinder.binder.keeper_link import DescriptorCopy, HasDescriptor, KeeperLink
from multibinder.binder.keeper_waiters import OnConfirmed, Waiter, Waiters
from multibinder.binder.loop import Loop

#: The keeper must confirm within this time. It takes milliseconds, but systemd may be in the middle of a reload.
CONFIRM_S = 10.0
#: After an error, the keeper is tried again after this time.
_AGAIN_S = 1.0
#: The most descriptors between two barriers.
_BATCH = 1024

#: Set by the guard in the environment of the binder that it starts. The value ANSWERS: it answers barriers.
GUARDED, ANSWERS = "MULTIBINDER_GUARDED", "2"
#: Set for the next version by an upgrade: names that the keeper has still to remove, with ``:`` between them.
UNREMOVED = "MULTIBINDER_UNREMOVED"
#: An environment string has at most 128 KiB (MAX_ARG_STRLEN, execve(2)).
_UNREMOVED_BYTES = 120_000


class Keeper:
    """The binder's side of a descriptor store. It never blocks; ``close`` it before the loop is closed.

    ``limit`` is the number of descriptors that the keeper takes; ``who`` is ``systemd`` or ``guard``. ``kept_names``
    are the names of descriptors that it has already, because they came from it. ``unremoved`` are names that an earlier
    version of this process released. If it ``answers``, an end of a barrier without its answer confirms nothing.

    At most one barrier is in flight, and a keeper that does not read costs no descriptor for each listener: descriptors
    are looked up when they are sent, and callers that wait for the same one share it.
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        limit: int,
        who: str,
        kept_names: Iterable[str] = (),
        *,
        unremoved: Iterable[str] = (),
        answers: bool = False,
    ) -> None:
        self._loop = loop
        self._link = KeeperLink(loop, address, on_room=self._flush, on_answer=self._finish_batch)
        self.limit = limit
        self.who = who
        self._answers = answers
        self._kept = set(kept_names)
        self._refused: set[str] = set()
        self._to_remove = dict.fromkeys(unremoved)
        self._to_keep: dict[str, HasDescriptor] = {}
        # What was sent since the last barrier was answered. A name that is forgotten meanwhile still counts.
        self._batch: dict[str, HasDescriptor] = {}
        self._sent = self._batch_number = 0
        self._life = f"{os.getpid()}-{time.monotonic_ns()}"
        self._is_second_try = False
        self._waiters = Waiters(loop, CONFIRM_S, self._kept_of, self._note_silence)
        self._is_silent = self._has_failed = self._is_again_due = False
        if self._to_remove:
            loop.call_later(0, self._flush)

    @property
    def kept(self) -> int:
        """Return the number of descriptors that the keeper has."""
        return len(self._kept)

    def keep(self, descriptors: Sequence[tuple[str, int | HasDescriptor]], confirmed: OnConfirmed) -> None:
        """Store (name, descriptor) each, and call ``confirmed`` once, from the loop.

        The descriptors stay the caller's. A number is duplicated at once. An object is asked for its descriptor when
        that is sent, and nothing is sent if it is closed by then.
        """
        pending = len(self._kept) + len(self._batch) + len(self._to_keep)
        refused = []
        for name, descriptor in descriptors:
            if name in self._kept or name in self._batch or name in self._to_keep:
                continue
            if pending >= self.limit:
                refused.append(name)
                continue
            try:
                self._to_keep[name] = DescriptorCopy(descriptor) if isinstance(descriptor, int) else descriptor
            except OSError as error:
                self._say_unreachable(error)
                continue
            pending += 1
            self._refused.discard(name)
        if new := set(refused) - self._refused:
            limit = "FileDescriptorStoreMax=" if self.who == "systemd" else "the guard's limit of open files"
            why = f"they would not survive a crash of the binder; raise {limit}"
            events.error("store-full", limit=self.limit, lost=len(new), why=why)
            self._refused |= new
        waiter = self._waiters.add([name for name, _ in descriptors], confirmed)
        self._flush()
        if self._is_silent or self._has_failed or not self._is_pending(waiter):
            self._loop.call_later(0, lambda: self._waiters.tell(waiter))

    def forget(self, names: Sequence[str]) -> None:
        """Remove descriptors from the keeper, by their names. Those that were not sent yet are not sent.

        A name that this process does not know is removed too: the keeper may have it from an earlier binder.
        """
        for name in names:
            was_sent = self._to_keep.pop(name, None) is None and name not in self._refused
            self._refused.discard(name)
            if was_sent or name in self._kept or name in self._batch:
                self._kept.discard(name)
                self._batch.pop(name, None)
                self._to_remove[name] = None
        self._flush()

    def stop_waiting(self) -> None:
        """Tell all callers now what the keeper has: nobody waits for it any longer."""
        self._waiters.tell_all()

    def unremoved(self) -> list[str]:
        """Return the released names whose removal could not be sent yet."""
        return list(self._to_remove)

    def close(self, environment: MutableMapping[str, str]) -> None:
        """Close the connection. ``environment`` takes the names that the next version must remove."""
        unremoved = ":".join(self._to_remove)
        if len(unremoved) > _UNREMOVED_BYTES:
            unremoved = unremoved[:_UNREMOVED_BYTES].rpartition(":")[0]
        if unremoved:
            environment[UNREMOVED] = unremoved
        self._link.close()
        self._to_keep.clear()  # copies are closed with them
        self._batch.clear()

    def _kept_of(self, names: Sequence[str]) -> set[str]:
        return self._kept.intersection(names)

    def _is_pending(self, waiter: Waiter) -> bool:
        return any(name in self._to_keep or name in self._batch for name in waiter.names)

    def _note_silence(self) -> None:
        if not self._is_silent:
            # No client waits for the keeper until it has confirmed something again.
            self._is_silent = True
            events.error("store-silent", seconds=CONFIRM_S, why="the keeper does not confirm what it was sent")

    def _tell_complete(self) -> None:
        self._waiters.tell_those(lambda waiter: not self._is_pending(waiter))

    def _flush(self) -> None:
        """Send what waits, as far as the keeper takes it now. After an error, try again later."""
        try:
            self._send_all()
        except BlockingIOError:
            return  # it is called again when there is room
        except OSError as error:
            self._link.stop_watching()
            self._fail(error)
        else:
            self._link.stop_watching()
            if not self._link.has_barrier:
                self._note_answer()
                self._loop.call_later(0, self._tell_complete)

    def _send_all(self) -> None:
        while self._to_remove:
            name = next(iter(self._to_remove))
            self._link.send(f"FDSTOREREMOVE=1\nFDNAME={name}")
            del self._to_remove[name]
        if self._link.has_barrier:
            return
        while self._to_keep and self._sent < _BATCH:
            name, source = next(iter(self._to_keep.items()))
            if self._send_descriptor(name, source.fileno()):
                self._batch[name] = source
                self._sent += 1
            del self._to_keep[name]
        if self._sent:
            self._link.send_barrier(f"BARRIER=1{self._batch_field}")

    def _send_descriptor(self, name: str, descriptor: int) -> bool:
        """Send one descriptor. Return False if it is not open: its listener was released meanwhile."""
        # Without FDPOLL=0, systemd drops a socket that a holder shuts down.
        message = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0{self._batch_field}"
        try:
            if descriptor >= 0:
                self._link.send(message, descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return False
        return descriptor >= 0

    @property
    def _batch_field(self) -> str:
        """Return the line by which the guard counts a batch. systemd takes no other line in a barrier's message."""
        return f"\nBATCH={self._life}-{self._batch_number}" if self.who == "guard" else ""

    def _finish_batch(self, answer: bytes) -> None:
        """Note what the keeper has confirmed, send the rest again, and tell those who waited."""
        lost = self._lost_names(answer)
        batch, self._batch, self._sent = self._batch, {}, 0
        self._batch_number += 1
        if lost and not self._is_second_try:
            self._is_second_try = True
            self._to_keep = {name: batch.pop(name) for name in lost} | self._to_keep
        else:
            self._is_second_try = False
            if lost:
                why = "the keeper could not take them"
                events.limited(events.error, "store-lost", "", count=len(lost), why=why)
        self._kept |= batch.keys() - lost
        self._note_answer()
        self._tell_complete()
        self._flush()

    def _note_answer(self) -> None:
        if self._is_silent or self._has_failed:
            self._is_silent = self._has_failed = False
            events.info("store-answers", kept=len(self._kept))

    def _lost_names(self, answer: bytes) -> set[str]:
        """Return the names of the batch that the keeper does not certainly have."""
        lines = answer.decode(errors="replace").splitlines()
        kept = next((line[5:] for line in lines if line.startswith("KEPT ")), None)
        if kept is None:
            return set(self._batch) if self._answers else set()
        self._answers = True
        lost = {line[5:] for line in lines if line.startswith("LOST ")}
        if not kept.isdigit() or int(kept) + len(lost) != self._sent:
            return set(self._batch)
        return lost & self._batch.keys()

    def _fail(self, error: OSError) -> None:
        """Try again later. Nobody waits for a keeper that cannot be reached."""
        self._say_unreachable(error)
        if not self._is_again_due:
            self._is_again_due = True
            self._loop.call_later(_AGAIN_S, self._try_again)
        self._loop.call_later(0, self.stop_waiting)

    def _say_unreachable(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            events.error("store-unreachable", why=error.strerror)

    def _try_again(self) -> None:
        self._is_again_due = False
        self._flush()


def keeper_for(environment: MutableMapping[str, str], loop: Loop, kept_names: Iterable[str] = ()) -> Keeper | None:
    """Return the keeper that $NOTIFY_SOCKET and $FDSTORE name; None without a keeper."""
    unremoved = environment.pop(UNREMOVED, "")
    address, limit = environment.get("NOTIFY_SOCKET", ""), environment.get("FDSTORE", "")
    if not address or not limit.isdigit() or int(limit) == 0:
        return None
    return Keeper(
        loop,
        address,
        int(limit),
        "guard" if GUARDED in environment else "systemd",
        kept_names,
        unremoved=filter(None, unremoved.split(":")),
        answers=environment.get(GUARDED) == ANSWERS,
    )
