"""Options that can change on the live socket: set them for an owner, and take them off again.

An option is in force as long as the owner that asked for it last asks for it, or has a claim.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from multibinder.binder import events, repair
from multibinder.binder.listener import Listener, Setting
from multibinder.binder.owner import Owner
from multibinder.wire.kinds import OptionError
from multibinder.wire.options import Options


def apply(listener: Listener, asked: Options, owner: Owner) -> dict[str, Setting]:
    """Set what ``owner`` asks for, and take off what it has set before and does not ask for any more.

    Returns the former settings of the options that have changed; one that a pending grant has set counts as changed
    if it is asked for. Raises OptionError; then nothing has changed.
    """
    given, live = asked.given, listener.kind.live_options
    changes = {name: Setting(value, owner) for name, value in given.items() if name in live}
    for name, setter in listener.setters.items():
        # One that drains is bound again: its former claims are released.
        if name not in changes and (setter == owner or listener.draining):
            changes[name] = Setting(None)
    if not changes:
        return {}
    former = {name: setting_of(listener, name) for name in changes}
    try:
        for name, setting in changes.items():
            _set(listener, name, setting)
    except OptionError:
        restore(listener, former)
        raise
    return {
        name: was
        for name, was in former.items()
        if was != changes[name]
        or (changes[name].value is not None and any(name in grant.former for grant in listener.pending))
    }


def setting_of(listener: Listener, name: str) -> Setting:
    return Setting(getattr(listener.options, name), listener.setters.get(name))


def note_setter(listener: Listener, owner: Owner) -> None:
    """Note the owner of a listener that was opened with its options."""
    live = listener.kind.live_options
    if given := tuple(name for name in listener.options.given if name in live):
        listener.setters = _setters(given, owner)


@functools.lru_cache(maxsize=256)
def _setters(options: tuple[str, ...], owner: Owner) -> Mapping[str, Owner]:
    """Return the setters of listeners with the same options of one owner, which share them: 232 bytes each."""
    return MappingProxyType(dict.fromkeys(options, owner))


def restore(listener: Listener, former: dict[str, Setting]) -> None:
    """Give options their former values, but for those whose owner has no claim any more. An error is logged."""
    for name, setting in former.items():
        gone = setting.setter is not None and setting.setter not in listener.claims
        _set_or_complain(listener, name, Setting(None) if gone else setting)
    if "backlog" in former:
        set_backlog(listener)


def take_off(listener: Listener, owner: Owner) -> None:
    """Take off the options that an owner has set, whose claim is removed. An error is logged."""
    if gone := [name for name, setter in listener.setters.items() if setter == owner]:
        for name in gone:
            _set_or_complain(listener, name, Setting(None))
        if "backlog" in gone:
            set_backlog(listener)


def set_backlog(listener: Listener) -> None:
    """Give the socket its backlog. An error is logged; the regular repair tries again."""
    if listener.awaits_holder:
        return
    try:
        repair.set_backlog(listener)
    except OSError as error:
        events.error("cannot-repair", address=listener.key, why=error)


def give_to(listener: Listener, owner: Owner, to: Owner) -> None:
    """Note that the claim of ``owner`` is another owner's now, and its options with it."""
    if owner in listener.setters.values():
        listener.setters = {name: to if setter == owner else setter for name, setter in listener.setters.items()}


def _set_or_complain(listener: Listener, name: str, setting: Setting) -> None:
    try:
        _set(listener, name, setting)
    except OptionError as error:
        why = f"option {name} cannot be changed back: {error.strerror}{error.remedy}"
        events.limited(events.error, "cannot-repair", listener.log_key, address=listener.key, why=why)


def _set(listener: Listener, name: str, setting: Setting) -> None:
    """Set one option. The backlog is only noted: ``set_backlog`` sets it."""
    if getattr(listener.options, name) != setting.value:
        if name != "backlog":
            listener.kind.set_option(listener.socket, name, setting.value)
        listener.options = msgspec.structs.replace(listener.options, **{name: setting.value})
    if listener.setters.get(name) != setting.setter:
        others = {each: setter for each, setter in listener.setters.items() if each != name}
        listener.setters = others if setting.setter is None else {**others, name: setting.setter}
