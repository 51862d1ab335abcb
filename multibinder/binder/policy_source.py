"""Load the policy at the start of the binder, and again at SIGHUP.

The names of users and groups in it may be looked up in the network, which takes long or does not end. So a child
process reads the policy. The binder waits for it at a start only, and not for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from multibinder.binder import events, policy_file
from multibinder.binder.forked import Forked, answer_of
from multibinder.binder.loop import Loop
from multibinder.binder.policy import Policy
from multibinder.binder.policy_file import PolicyError, ResolvedFile
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.settings import DEFAULT_POLICY
from multibinder.wire.errors import MultibinderError

#: A start with listeners waits this long for the policy. Clients wait meanwhile, and a supervisor has a deadline.
_FIRST_TIMEOUT_S = 10.0


class _Loaded(msgspec.Struct, frozen=True):
    """The result of a child: the file, None for none; or the error."""

    file: ResolvedFile | None = None
    error: str = ""


def load_policy(path: str | None, *, required: bool = False) -> Policy | None:
    """Load the policy in this process; None if ``path`` is None and the default file does not exist.

    ``required`` is true if a policy has been in force. Then a missing file is an error: its removal must not allow
    every request of every client. Raises PolicyError.
    """
    file = _resolved(path, required=required)
    return None if file is None else file.policy()


def require_file(path: str | None) -> None:
    """Raise PolicyError if the policy file does not exist. Nothing is read and no name is looked up."""
    if not os.path.lexists(path or DEFAULT_POLICY):
        raise PolicyError(f"{path or DEFAULT_POLICY}: there is no such file, and a policy is in force")


def load_first_policy(path: str | None, *, had_policy: bool, has_listeners: bool) -> Policy | None:
    """Load the policy at a start. Raises PolicyError only if the binder has no listeners.

    A binder with listeners must serve them. If the file is broken, or its names cannot be looked up in time, it gets a
    policy without rules, which allows every request of root and of the binder's own user, and no other.
    """
    if not has_listeners:
        return load_policy(path)
    if path is None and not had_policy and not os.path.lexists(DEFAULT_POLICY):
        return None
    try:
        return _policy_of(path, *answer_of(_work(path, required=had_policy), timeout_s=_FIRST_TIMEOUT_S))
    except MultibinderError as error:
        events.error("policy-broken", why=error, done="only root and this user may ask for anything until SIGHUP")
        return Policy(path or DEFAULT_POLICY, (), os.geteuid())


class PolicySource:
    """Loads the policy again when ``reload`` is called, without stopping the loop.

    The policy ``in_force`` decides until then, and goes on if the file is broken or its load takes longer than
    ``timeout_s``. ``replaced`` is called from the loop after each load that succeeded.
    """

    def __init__(
        self,
        loop: Loop,
        path: str | None,
        in_force: PolicyInForce,
        replaced: Callable[[], None],
        *,
        timeout_s: float,
    ) -> None:
        self._loop = loop
        self._path = path
        self._in_force = in_force
        self._replaced = replaced
        self._timeout_s = timeout_s
        self._child: Forked | None = None
        self._load_again = False

    def reload(self) -> None:
        """Load the policy. During a load, another one follows it: the file may have changed since it was read."""
        if self._child is not None and self._child.is_running:
            self._load_again = True
            return
        work = _work(self._path, required=self._in_force.current is not None)
        self._child = Forked(self._loop, work, self._finish, timeout_s=self._timeout_s)

    def stop(self) -> None:
        """End a load that is under way."""
        if self._child is not None:
            self._child.stop()

    def _finish(self, answer: bytes | None, why: str) -> None:
        try:
            self._replace(_policy_of(self._path, answer, why))
        except MultibinderError as error:
            events.error("policy-broken", why=error, done="the previous policy stays in force")
        finally:
            if self._load_again:
                self._load_again = False
                self.reload()

    def _replace(self, policy: Policy | None) -> None:
        self._in_force.replace(policy)
        if policy is None:
            why = f"there is no {DEFAULT_POLICY}: the control socket's mode decides"
            events.info("policy-reloaded", rules=0, why=why)
        else:
            events.info("policy-reloaded", path=policy.path, rules=len(policy.rules))
        self._replaced()


def _resolved(path: str | None, *, required: bool) -> ResolvedFile | None:
    if path is None and not required and not os.path.lexists(DEFAULT_POLICY):
        return None
    return policy_file.resolved(path or DEFAULT_POLICY)


def _work(path: str | None, *, required: bool) -> Callable[[], bytes]:
    """Return the work of the child. It sends a ``_Loaded`` in JSON."""

    def load() -> bytes:
        try:
            loaded = _Loaded(_resolved(path, required=required))
        except MultibinderError as error:
            loaded = _Loaded(error=str(error))
        return msgspec.json.encode(loaded)

    return load


def _policy_of(path: str | None, answer: bytes | None, why: str) -> Policy | None:
    """Return the policy that a child has loaded. Raises PolicyError."""
    if answer is None:
        raise PolicyError(f"{path or DEFAULT_POLICY}: cannot read the policy: {why}")
    loaded = msgspec.json.decode(answer, type=_Loaded)
    if loaded.error:
        raise PolicyError(loaded.error)
    return None if loaded.file is None else loaded.file.policy()
