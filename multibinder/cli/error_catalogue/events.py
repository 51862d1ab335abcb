"""The events that the binder and the guard log as warnings or errors."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

EVENTS = Section(
    "In the log",
    "The binder and the guard log one line for each event, `event=NAME` with fields; `why=` has the reason. These "
    "are the warnings and errors. At most 20 lines of one kind about one uid are written in 10 seconds; `left_out=` "
    "says how many were not.",
    (
        entry(
            "orphan",
            cause="no process has the listener open: its clients wait for nothing",
            remedy="start the server again, `multibinder release` the address, or `serve --orphan-ttl 10m`",
        ),
        entry(
            "orphan-closed",
            cause="`serve --orphan-ttl` closed a listener without a holder; `reset=` clients were waiting",
            remedy="nothing, if its server is gone for good; it binds again when it starts",
        ),
        entry(
            "stalled",
            cause="clients wait, and no holder accepts",
            remedy="look at the server: it hangs, or is overloaded",
        ),
        entry(
            "repaired",
            "backlog-restored",
            cause="a holder called shutdown(2), or listen(2) with another backlog; the binder undid it",
            remedy="nothing; the holder will do it again at its next start",
        ),
        entry(
            "caution",
            cause="every user of this host can interfere with a listener that was made; `why=` says how. For QUIC it "
            "is SO_REUSEADDR (docs/reference/kinds.md)",
            remedy="nothing on a host without users whom you do not trust; else serve by TCP there",
        ),
        entry(
            "cannot-repair",
            cause="the kernel refused to listen again, or another process took the address meanwhile",
            remedy="`ss -ltnp` shows who has it; stop that process, and restart the server",
        ),
        entry(
            "path-unwatched",
            cause="the kernel refused to watch the directory of a Unix socket (inotify(7)), or the binder may not read "
            "it; a path that was removed is given back within 15 s, not at once",
            remedy="raise fs.inotify.max_user_instances and max_user_watches, or let the binder read the directory",
        ),
        entry(
            "shutdown-unwatched",
            cause="the kernel refused to watch a listener for shutdown(2) by a holder (epoll_ctl(2)); one is repaired "
            "within 15 s, not at once",
            remedy="raise fs.epoll.max_user_watches, or give the host more memory",
        ),
        entry(
            "drain-ended",
            cause="the drain of a released listener ended early: the listener was bound again. Without CAP_NET_RAW the "
            "kernel does not let clients of other hosts in again: the `reset=` clients that waited were reset, and the "
            "address has a new socket",
            remedy="nothing; do not bind an address while it drains, or start the new server before the release",
        ),
        entry(
            "cannot-turn-away",
            cause="the kernel refused to keep new clients from a listener that drains; the drain goes on with them",
            remedy="nothing; it ends after its time at the latest",
        ),
        entry(
            "cannot-let-go",
            cause="the hidden second name of a Unix path could not be removed when the binder let go of its listener",
            remedy="remove the hidden file beside the path; the server that has the socket is not touched",
        ),
        entry(
            "shard-drains",
            cause="a shard was released, and the kernel does not give the clients in its queue to another shard: for "
            "TCP, net.ipv4.tcp_migrate_req is 0 and the binder may not load a BPF program. New clients come to the "
            "other shards, and the holders of this one accept what waits, for 5 s at most; clients in the middle of a "
            "handshake, or silent with defer_accept, can be reset. Datagrams that wait longer are lost",
            remedy="`sysctl -w net.ipv4.tcp_migrate_req=1`, or the drop-in shards.conf; see docs/how-to/shards.md",
        ),
        entry(
            "cannot-steer",
            cause="the kernel refused the program that steers new clients to the shards that stay; until the released "
            "one is closed, clients still come to it",
            remedy="look at `why=`: memory (net.core.optmem_max), or a namespace that is gone",
        ),
        entry(
            "cannot-move-clients",
            cause="the program that moves the clients of a shard could not be loaded or attached, for another reason "
            "than a missing right; what follows is as for `shard-drains`",
            remedy="look at `why=`: descriptors (LimitNOFILE=), locked memory or a security module",
        ),
        entry(
            "shutdown-failed",
            cause="a released listener could not be shut down; it may stay open in its holders",
            remedy="restart its holders",
        ),
        entry(
            "backlog-capped",
            cause="net.core.somaxconn is lower than the backlog that was asked for",
            remedy="`sysctl -w net.core.somaxconn=…`, then restart the server",
        ),
        entry(
            "callback-failed",
            cause="the kernel lacked a resource in a place that does not expect it, or the binder has a bug; only what "
            "`callback=` names was not done, and it is tried again",
            remedy="look at `error=`: descriptors (LimitNOFILE=), memory or a full disk; otherwise report the line",
        ),
        entry(
            "client-failed",
            cause="as `callback-failed`, while a client was served; it was told and dropped, and may ask again",
            remedy="look at `error=`: descriptors (LimitNOFILE=), memory, fs.epoll.max_user_watches; otherwise report "
            "the line",
        ),
        entry(
            "cannot-look",
            cause="the binder could not look for holders: a fork was refused, or the scan of /proc took too long",
            remedy="free memory, or raise TasksMax= of the unit; orphans are not found meanwhile",
        ),
        entry(
            "log-lost",
            cause="the reader of the log did not read, or its disk was full; `count=` lines are missing",
            remedy="look at what reads the binder's stderr, or free space for `--log-file`",
        ),
        entry(
            "refused",
            cause="a client asked for what it cannot have; `why=` is what it was told",
            remedy="see that message on this page",
        ),
        entry(
            "turned-away",
            cause="a client, or its request, was above a limit",
            remedy="repair the client, which has a bug or is hostile; or raise the flag that `why=` names",
        ),
        entry(
            "evicted",
            cause="an idle connection was closed to make room for a new one",
            remedy="close connections after use, or raise `--max-clients`",
        ),
        entry(
            "timed-out",
            cause="a client sent half of a request, did not read its answer, or did not acknowledge its listeners, for "
            "`--request-timeout`",
            remedy="repair the client, or give a slow host a longer timeout",
        ),
        entry(
            "protocol-error",
            cause="a client sent bytes that are no request",
            remedy="`command=` names the program: does it really want this socket?",
        ),
        entry(
            "cannot-hand-over",
            cause="the kernel refused to send descriptors: too many are in flight for this user (unix(7), "
            "ETOOMANYREFS)",
            remedy="raise `LimitNOFILE=` of the binder; see to clients that do not read",
        ),
        entry(
            "cannot-accept",
            cause="the binder has no descriptor or memory left for a new connection; it tries again",
            remedy="raise `LimitNOFILE=`, or lower `--max-clients`",
        ),
        entry(
            "internal-error",
            cause="a bug: a request failed in an unexpected way; the binder goes on",
            remedy="report it with the line",
        ),
        entry(
            "open-to-others",
            cause="other users may connect to the control socket, and there is no policy",
            remedy="[write a policy](how-to/policy.md), or `--mode 0600`",
        ),
        entry(
            "policy-broken",
            cause="the policy file was changed and cannot be used, or its names could not be looked up in time. At "
            "SIGHUP the previous policy holds; at a start "
            "only root and the binder's user may ask for anything",
            remedy="`multibinder policy lint FILE`, correct it (numbers need no look-up of names), SIGHUP",
        ),
        entry(
            "directory-unsafe",
            "directory-doubtful",
            cause="another user, or a group, could replace the files in the control socket's directory",
            remedy="use `/run/multibinder`, or `chown`, `chmod go-w`",
        ),
        entry(
            "limit-lowered",
            cause="RLIMIT_NOFILE is too low for `--max-listeners`",
            remedy="raise `LimitNOFILE=`, or `ulimit -Hn`",
        ),
        entry(
            "store-full",
            cause="more sockets than systemd's descriptor store, or the guard, takes: the newest would not survive "
            "a crash",
            remedy="raise `FileDescriptorStoreMax=`, and `Environment=FDSTORE=` with it",
        ),
        entry(
            "store-lost",
            "guard-store-full",
            cause="the guard has no free descriptor for a new socket, which would not survive a crash of the binder; "
            "it is sent again every 15 s",
            remedy="raise the guard's limit (`prlimit --nofile=`)",
        ),
        entry(
            "store-silent",
            cause="systemd, or the guard, did not confirm within 10 s that it keeps a socket",
            remedy="`systemctl status multibinder`; is NotifyAccess=main?",
        ),
        entry(
            "store-unreachable",
            cause="the notification socket cannot be used: sockets would not survive a crash",
            remedy="restart the binder by systemd, not from a shell with NOTIFY_SOCKET set",
        ),
        entry(
            "cannot-recover",
            cause="a process of another user has a socket of a binder that was killed, and this binder may not take it",
            remedy="install `ptrace.conf` and restart the binder (it has not forgotten the socket), or restart that "
            "process",
        ),
        entry(
            "not-recovered",
            cause="listeners of an earlier binder are gone: it ended without a keeper, or its keeper lost them, and "
            "no other process had them",
            remedy="nothing, if their servers bind them again; `serve --guard`, or the unit, keeps them the next time",
        ),
        entry(
            "inherited-lost",
            cause="the sockets that were kept could not be taken over",
            remedy="restart the servers behind them; report it with the line",
        ),
        entry(
            "inherited-unknown",
            "inherited-twice",
            cause="a descriptor that came from systemd, the guard or the previous version is no socket of ours; it "
            "was closed",
            remedy="nothing, after a change of the socket unit; else report it",
        ),
        entry(
            "records-unreadable",
            "records-damaged",
            "record-mismatch",
            cause="a record of owners and names is damaged, or is about another socket; sockets are kept, as "
            "`inherited`; owners or names may be lost",
            remedy="`multibinder list` shows what is known; the next bind of each server restores it",
        ),
        entry(
            "name-taken",
            cause="a listener came back, or was moved to another user, and that user has another listener of the same "
            "name; it goes on without a name",
            remedy="`multibinder list` shows both; release the one that is not needed",
        ),
        entry(
            "state-file-unreadable",
            cause="the file beside the control socket is another user's, as after a binder that ran as root",
            remedy="nothing: it is written anew",
        ),
        entry(
            "state-file-lost",
            "state-file-removed",
            cause="the file beside the control socket cannot be written, and is out of date; it is removed if not even "
            "a release can be marked in it. It is tried again every 15 s until that works (`state-file-written`)",
            remedy="free some space there",
        ),
        entry(
            "state-file-gone",
            cause="another program has removed or replaced the file beside the control socket; it is written again",
            remedy="exclude the directory from what cleans it (tmpfiles.d(5), `x`)",
        ),
        entry(
            "control-socket-gone",
            cause="another program has removed or replaced the control socket, or its lock; it is served again",
            remedy="exclude the directory from what cleans it (tmpfiles.d(5), `x`); with a socket unit, restart that",
        ),
        entry(
            "control-socket-lost",
            cause="the control socket was removed or replaced, and cannot be made again yet: another binder serves the "
            "path, or its directory is gone. It is tried again every 15 s",
            remedy="create the directory, remove the file in its place, or stop the other binder",
        ),
        entry(
            "socket-path-differs",
            cause="the control socket that was passed on, as by a socket unit, has another path than `--socket`",
            remedy="give `--socket` the path of ListenStream=",
        ),
        entry(
            "mode-not-set",
            cause="the mode or the group of a control socket that was passed on cannot be set",
            remedy="run as root or as a member of the group; `chmod`",
        ),
        entry(
            "journal-lost",
            cause="the kernel refuses memory, or a descriptor, for the journal of owners; binds are refused, releases "
            "go on. It is tried again every 15 s (`journal-written`)",
            remedy="free memory; raise `MemoryMax=` or `LimitNOFILE=`",
        ),
        entry(
            "signal-ignored",
            cause="a signal for which this version has no use",
            remedy="nothing",
        ),
        entry(
            "upgrade-refused",
            "upgrade-failed",
            cause="the newly installed code cannot start, could not be executed, or ended before it served; the "
            "running version goes on, in the last case as another process",
            remedy="repair the installation, `multibinder upgrade`",
        ),
        entry(
            "control-socket-lost",
            cause="the control socket's file was removed and cannot be created again; the binder serves its listeners",
            remedy="`why=` says what is in the way; then `multibinder serve` again, or a restart by its unit",
        ),
        entry(
            "clients-dropped",
            "client-state-unreadable",
            cause="the rest of half-sent requests could not be passed on at an upgrade; those clients get an error",
            remedy="nothing: they ask again; `why=` names the shortage",
        ),
        entry(
            "guard-upgrade-refused",
            "guard-upgrade-failed",
            cause="the newly installed guard cannot start, or could not be executed; the running guard goes on",
            remedy="repair the installation, SIGUSR2",
        ),
        entry(
            "guard-start-failed",
            cause="the installation broke in the moment between the trial of a new guard and its start; the guard "
            "keeps the sockets, and tries to start every 2 s; the binder runs on; what is bound meanwhile is not kept",
            remedy="repair the installation; `why=` says what is missing",
        ),
        entry(
            "binder-died",
            cause="the binder ended without being told to; the guard keeps its sockets and starts it again",
            remedy="`status=` says how (a negative number is a signal); report a crash",
        ),
        entry(
            "binder-not-started",
            cause="the guard could not start a process (no memory, `pids.max`, RLIMIT_NPROC, no free descriptor); it "
            "keeps the sockets and tries again",
            remedy="`why=` names the shortage",
        ),
        entry(
            "guard-socket-gone",
            cause="another program removed the file of the guard's socket, beside the control socket; the guard has "
            "made it again",
            remedy="make the cleaner of temporary files leave out the directory of the control socket",
        ),
        entry(
            "guard-socket-lost",
            cause="the file of the guard's socket, beside the control socket, was removed and cannot be made again; "
            "the older socket is used",
            remedy="see the directory of the control socket",
        ),
        entry(
            "guard-waits",
            cause="the guard began after an upgrade of itself, and has no descriptor or memory left for its own work",
            remedy="raise LimitNOFILE=, or `prlimit --nofile=` for the guard; it keeps the sockets, and tries again",
        ),
        entry(
            "guard-refused",
            cause="another user sent a message to the abstract socket of an older guard",
            remedy="SIGTERM to the binder: the next one uses the new socket, which others cannot reach",
        ),
        entry(
            "no-pidfile",
            cause="the PID file cannot be written; the guard goes on without it",
            remedy="make its directory writable",
        ),
    ),
)
