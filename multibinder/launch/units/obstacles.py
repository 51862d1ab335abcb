"""The reasons against the takeover of any unit."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.launch.units.unit import Unit

_TYPES = ("simple", "exec", "notify", "notify-reload", "forking", "idle")
#: States in which a unit neither serves nor has ended.
BETWEEN = ("activating", "deactivating", "maintenance", "refreshing")


def obstacles(unit: Unit) -> Iterator[str]:
    """Yield each reason, with what to do instead. The first one is the one that matters most."""
    state = unit.fact("LoadState")
    if state == "not-found":
        yield "systemd knows no such unit; 'systemctl list-unit-files' shows what there is"
        return
    if state == "masked":
        yield f"it is masked; 'systemctl unmask {unit.name}' first"
        return
    if state != "loaded":
        yield f"systemd cannot load it ({state}): {unit.fact('LoadError') or 'see systemctl status'}"
        return
    if not unit.name.endswith(".service"):
        yield "it is no service; a socket unit has nothing that binds"
        return
    if unit.name.startswith("multibinder"):
        yield "it is multibinder's own; its listeners are held already"
        return
    start = unit.commands("ExecStart")
    if len(start) != 1:
        yield f"it has {len(start) or 'no'} ExecStart= commands, and this command knows how to replace one"
        return
    if "@" in start[0].prefixes:
        yield "its ExecStart= gives the program another name (prefix @), which is lost behind our command"
    if unit.fact("Type") not in _TYPES:
        yield f"it has Type={unit.fact('Type')}: this is no server whose sockets could outlive it"
    sockets = [name for name in unit.fact("TriggeredBy").split() if name.endswith(".socket")]
    if sockets:
        names = ", ".join(sockets)
        yield f"systemd holds its sockets already ({names}): a restart loses no client; multibinder run has reloads"
    if unit.is_set("DynamicUser"):
        yield "it has DynamicUser=: the binder's policy and claims know users by a lasting uid; give it a User="
    families = unit.fact("RestrictAddressFamilies").split()
    if families and not _allows_unix(families):
        yield "its RestrictAddressFamilies= has no AF_UNIX, by which the binder is asked; add it in a drop-in"
    if unit.fact("RootDirectory") or unit.fact("RootImage"):
        yield "it has a root directory of its own, in which there is neither our command nor the binder's socket"
    if unit.is_set("PrivateNetwork") or unit.fact("NetworkNamespacePath"):
        yield "it has a network of its own; see the how-to page on containers for --netns"
    if unit.is_set("PrivateUsers"):
        yield "it has PrivateUsers=: the binder does not know the users of another user namespace"
    if unit.fact("ActiveState") in BETWEEN:
        yield f"it is just {unit.fact('ActiveState')}; try again when that has ended"


def _allows_unix(families: list[str]) -> bool:
    # systemctl puts a tilde before the first one if the list forbids.
    if families[0].startswith("~"):
        return "AF_UNIX" not in [each.lstrip("~") for each in families]
    return "AF_UNIX" in families
