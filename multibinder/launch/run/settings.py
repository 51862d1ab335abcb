"""The options of ``run``, from its command line and from ``--config FILE.toml``, which a reload reads afresh."""

from __future__ import annotations

import msgspec


class Bind(msgspec.Struct, frozen=True):
    """One ``-b ADDRESS[,OPTION=VALUE...][=NAME]``, with the listeners that it stands for.

    ``slots`` are elements of a request (launch/direct/slots.py): several for a range, a list or shards. ``name`` is
    that of ``{NAME}`` and LISTEN_FDNAMES, the same for all of them.
    """

    text: str
    name: str
    slots: list[dict[str, str | int | bool]]


class Readiness(msgspec.Struct, frozen=True):
    """How a new copy shows that it is ready. Without any, READY=1 counts, or that the kernel sees it wait for clients.

    ``timeout_s`` is the time limit for all of them. Only one of the others is set. At a reload the old copy is told to
    finish when the new one was ready for ``stable_s`` without an exit.
    """

    timeout_s: float = 60.0
    stable_s: float = 2.0
    notify: bool = False
    http: str | None = None
    tcp: str | None = None
    line: str | None = None
    after_s: float | None = None
    einhorn: bool = False


class Hooks(msgspec.Struct, frozen=True):
    """Shell commands around the life of a copy, each with the time limit ``timeout_s``."""

    pre_start: str | None = None
    post_ready: str | None = None
    pre_stop: str | None = None
    timeout_s: float = 30.0


class ServiceSettings(msgspec.Struct, frozen=True):
    """What a reload may change: the command, its sockets and how it is replaced.

    ``environment`` has the variables that are added or changed (``--env``; ``{NAME}`` is a descriptor);
    ``environment_file`` is read at each start of a copy. ``directory`` is its working directory, resolved at each
    start; None for that of ``run``. ``max_overlap`` is the number of copies that may run beside ``instances`` while
    they are replaced. ``canary`` is a number or a percentage of the copies that are replaced first; ``canary_for_s`` is
    the time without a crash after which the others follow, None for 'reload --continue'. ``stop_signal`` is a number.
    """

    command: list[str]
    binds: list[Bind] = []
    styles: list[str] = []
    environment: dict[str, str] = {}
    environment_file: str | None = None
    directory: str | None = None
    instances: int = 1
    max_overlap: int = 1
    canary: str | None = None
    canary_for_s: float | None = None
    ready: Readiness = Readiness()
    hooks: Hooks = Hooks()
    stop_signal: int = 15
    drain_timeout_s: float = 60.0


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a reload may change. The names are those of the options; None for one that was not given."""

    command: list[str] | None = None
    bind: list[Bind] | None = None
    style: list[str] | None = None
    env: dict[str, str] | None = None
    env_file: str | None = None
    directory: str | None = None
    instances: int | None = None
    max_overlap: int | None = None
    canary: str | None = None
    canary_for: float | None = None
    ready_notify: bool | None = None
    ready_http: str | None = None
    ready_tcp: str | None = None
    ready_line: str | None = None
    ready_after: float | None = None
    ready_einhorn: bool | None = None
    ready_timeout: float | None = None
    stable_for: float | None = None
    pre_start: str | None = None
    post_ready: str | None = None
    pre_stop: str | None = None
    hook_timeout: float | None = None
    stop_signal: int | str | None = None
    drain_timeout: float | None = None


class RunSettings(msgspec.Struct, frozen=True):
    """All options of ``run``. It becomes this process with them as one JSON argument.

    ``directory`` is the runtime directory of all instances, ``socket`` the binder's control socket; None without a
    binder, where the addresses are bound by ``run`` itself. ``config`` is the TOML file; ``service`` is what the
    command line and this file said at the start, ``given`` what the command line alone said: it wins over the file at
    each reload, too. ``wait_s`` is the time for a binder that does not answer yet.
    ``give_up_after_s`` is the time after which the ports of a command that cannot be started are closed.
    ``keep_listeners`` leaves them open when ``run`` is told to end. ``fallback`` says why ``service`` are the last good
    settings, and not those of ``config``.
    """

    name: str
    directory: str
    socket: str | None
    service: ServiceSettings
    given: ServiceOptions = ServiceOptions()
    owner: str = ""
    config: str | None = None
    wait_s: float = 10.0
    give_up_after_s: float = 600.0
    keep_listeners: bool = False
    strict: bool = False
    fallback: str = ""
    verbose: bool = False

    @classmethod
    def of_text(cls, text: str) -> RunSettings:
        """Return the settings that ``to_text`` wrote."""
        return msgspec.json.decode(text, type=cls)

    def to_text(self) -> str:
        """Return the settings as the one argument of the process."""
        return msgspec.json.encode(self).decode()
