"""Load the policy at the start of the binder, and again at SIGHUP."""

from __future__ import annotations

import os

from multibinder.binder import events, policy_file
from multibinder.binder.policy import Policy
from multibinder.binder.settings import DEFAULT_POLICY
from multibinder.wire.errors import MultibinderError


def load_policy(path: str | None, *, required: bool = False) -> Policy | None:
    """Load the policy; None if ``path`` is None and the default file does not exist.

    ``required`` is true if a policy has been in force. Then a missing file is an error: its removal must not allow
    every request of every client. Raises PolicyError.
    """
    if path is None and not required and not os.path.lexists(DEFAULT_POLICY):
        return None
    return policy_file.load(path or DEFAULT_POLICY)


def load_first_policy(path: str | None, *, had_policy: bool, has_listeners: bool) -> Policy | None:
    """Load the policy at a start. Raises PolicyError only if the binder has no listeners.

    A binder with listeners must serve them. If the file is broken, it gets a policy without rules, which allows every
    request of root and of the binder's own user, and no other.
    """
    try:
        return load_policy(path, required=had_policy and has_listeners)
    except MultibinderError as error:
        if not has_listeners:
            raise
        events.error("policy-broken", why=error, done="only root and this user may ask for anything until SIGHUP")
        return Policy(path or DEFAULT_POLICY, (), os.geteuid())


def reload_policy(path: str | None, in_force: Policy | None) -> Policy | None:
    """Load the policy again, and return the one in force from now on. If the file is broken, the old one stays."""
    try:
        policy = load_policy(path, required=in_force is not None)
    except MultibinderError as error:
        events.error("policy-broken", why=error, done="the previous policy stays in force")
        return in_force
    if policy is None:
        events.info("policy-reloaded", rules=0, why=f"there is no {DEFAULT_POLICY}: the control socket's mode decides")
    else:
        events.info("policy-reloaded", path=policy.path, rules=len(policy.rules))
    return policy
