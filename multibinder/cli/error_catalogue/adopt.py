"""The errors of ``multibinder adopt``, and the binder's refusals of its requests."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

ADOPT = Section(
    "Adopting listeners of a running server",
    "From `multibinder adopt` ([how to use it](how-to/adopt.md)). Nothing was adopted, and the server goes on.",
    (
        entry(
            "…: no process that this user can see has a listener there",
            "these processes have no listener",
            cause="the address is another one (`0.0.0.0` and `127.0.0.1` differ), the server has not started, it is in "
            "another network namespace, or the user may not read its descriptors",
            remedy="`ss -ltnp` shows the addresses; run the command as root; use `--pid` for another namespace",
        ),
        entry(
            "the descriptors of … cannot be read: run this as root",
            "copying it needs the same user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (run this as root)",
            cause="the command copies sockets with its own rights (pidfd_getfd(2)), and they do not suffice; as root, "
            "kernel.yama.ptrace_scope=3 or a seccomp filter of a container forbids it",
            remedy="run it as root on the host",
            fragment="cannot be read: run this as root",
        ),
        entry(
            "… cannot be taken over from …: …",
            "… cannot be taken over from its server: …",
            "… cannot be taken over: …",
            "cannot look for the server that serves now: …",
            cause="`run --adopt` could not adopt the listeners of the server that serves; the sentence has the reason. "
            "Nothing was started, and that server goes on",
            remedy="the remedy of the reason; run it as root",
        ),
        entry(
            "'multibinder adopt' cannot be run: …",
            cause="`run --adopt` starts a process of ours for it, which did not start, or did not end in a minute",
            remedy="the reason says which; is the installation complete?",
        ),
        entry(
            "--adopt needs a binder: name it by --socket or …",
            cause="`run --adopt` gives the listeners of the present server to a binder, and none is named",
            remedy="start `multibinder serve`, and set MULTIBINDER_SOCK",
        ),
        entry(
            "multibinder has no kind for this sort of socket",
            cause="SCTP, for example; the binder does not hold such sockets",
            remedy="none",
        ),
        entry(
            "clients do not reach it at this address: its path leads elsewhere, or it is shut down",
            "clients do not reach the socket that came at this address",
            cause="the path of a Unix socket was removed or renamed, or the server has shut the socket down",
            remedy="restart the server, and adopt the new socket",
        ),
        entry(
            "its port is one that the kernel chooses for clients; give the address to adopt it all the same",
            "this program makes the path anew at each reload; give the address to adopt it all the same",
            cause="with `--pid` or `--unit`, sockets that are probably no service are left alone: that of a resolver, "
            "or HAProxy's `stats socket`",
            remedy="give the address, if clients come to it",
        ),
        entry(
            "this binder (…) cannot adopt sockets: upgrade it first ('multibinder upgrade')",
            cause="the running binder is older than the command",
            remedy="`multibinder upgrade`",
        ),
        entry(
            "Not allowed to adopt: only root and the binder's own user may hand sockets to the binder",
            cause="another user asks, or root of a container: a process in another PID namespace is not believed",
            remedy="run `multibinder adopt` as root on the host of the binder",
            fragment="only root and the binder's own user may hand sockets to the binder",
        ),
        entry(
            "Could not adopt: …: …",
            "the socket that came is bound to …",
            "the socket that came is of another kind (…)",
            "the socket that came is connected to a client",
            "the socket that came does not listen",
            "the socket that came is in another network namespace (…)",
            "the same socket came twice in one request",
            "it is the control socket of this binder",
            "the descriptor that came is no socket",
            "the kernel says of the socket that came: …",
            cause="the binder believes only what the kernel says of a socket, and that is not what the request says; "
            "the server may have closed or changed it at that moment",
            remedy="look with `multibinder adopt --dry-run`, and try again",
        ),
        entry(
            "this binder holds another socket for this address; release that one first",
            cause="two servers have the address, each with a socket of its own, and one of the sockets is the binder's",
            remedy="stop the server that does not get its socket from the binder, or `multibinder release` the address",
        ),
        entry(
            "this binder holds its limit of listeners (multibinder serve --max-listeners)",
            cause="`serve --max-listeners` is reached",
            remedy="raise it",
        ),
        entry(
            "Could not adopt: …",
            "… descriptors were to come, and … did",
            "the kernel dropped descriptors on their way: …",
            "… descriptors were asked for, and … or more came",
            "params has … elements: one request adopts … at most",
            "the binder at … was upgraded again and again; ask again later",
            cause="the descriptors did not come with their request: the binder is at its limit of open files, was "
            "upgraded at that moment, or the client is no multibinder",
            remedy="raise `LimitNOFILE=` of the binder; try again",
        ),
    ),
)
