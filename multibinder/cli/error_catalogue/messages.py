"""The errors of the library, the binder and the commands."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

CLIENT = Section(
    "Asking the binder",
    "From the library (`import multibinder`), and from every command that talks to the binder.",
    (
        entry(
            "MULTIBINDER_SOCK is not set: set it to the path of the binder's control socket",
            cause="nothing says where the binder is",
            remedy="`export MULTIBINDER_SOCK=…`, or `socket_path=`",
            fragment="is not set: set it to the path of the binder's control socket",
        ),
        entry(
            "no binder is named: --socket and MULTIBINDER_SOCK are not set, and … is not there",
            cause="a client command was not told where the binder is, and no binder serves the usual path",
            remedy="`systemctl start multibinder.socket`, or `--socket` with the path of another binder",
            fragment="no binder is named: --socket and",
        ),
        entry(
            "Could not bind: …: the binder cannot record the owner: …",
            cause="the kernel refuses memory for the journal; without a record, a crash would lose the owner",
            remedy="see `journal-lost` in the binder's log; try again",
            fragment="the binder cannot record the owner",
        ),
        entry(
            "cannot reach the binder at …: there is no such socket",
            cause="no binder runs there",
            remedy="start `multibinder serve --socket …`; under systemd `systemctl start multibinder.socket`",
            fragment="there is no such socket",
        ),
        entry(
            "cannot reach the binder at …: no process listens there any more",
            cause="the binder ended without removing its socket: it was killed",
            remedy="start it again; it removes the file itself",
            fragment="no process listens there any more",
        ),
        entry(
            "cannot reach the binder at …: permission denied",
            cause="the control socket's mode does not let this user connect",
            remedy="`serve --group NAME`, and be in that group",
            fragment="permission denied; the binder's --mode and --group",
        ),
        entry(
            "cannot reach the binder at …",
            cause="the kernel refused the connection, for the reason that follows",
            remedy="as the reason says; `multibinder doctor` looks at the control socket",
        ),
        entry(
            "the binder at … did not accept the connection within … s",
            "the binder at … did not answer '…' within … s",
            "… of … descriptors came from … within … s",
            cause="the binder is stopped (SIGSTOP), or overloaded, or the host is",
            remedy="look at its log and at `multibinder status`; give `timeout=` more",
        ),
        entry(
            "the binder at … closed the connection without an answer",
            cause="the binder ended, or refused this client: it is at a limit",
            remedy="ask again; its log says `event=turned-away` with the limit, or `event=evicted`",
        ),
        entry(
            "the … listeners could not be received, and none was: …; raise the limit, or ask for fewer",
            "the kernel dropped descriptors on their way to us: this process is at its limit of … open files",
            cause="RLIMIT_NOFILE of the client is too low for the listeners that it asked for",
            remedy="`ulimit -n`, or `LimitNOFILE=` in its unit",
        ),
        entry(
            "the binder at … ended the connection, and took the listeners back, before it was told",
            "the binder at … took its listeners back before it knew that they had arrived",
            cause="this process was stopped for longer than `--request-timeout`, or the binder ended the connection",
            remedy="ask again; the binder's log says `event=timed-out` or `event=evicted`",
        ),
        entry(
            "the program at …the Ruby … its listeners",
            cause="the Ruby program knows no method but bind",
            remedy="`ss -ltnp` as root; [move from the Ruby program](how-to/from-ruby.md)",
        ),
        entry(
            "… is neither an address, a (host, port) tuple nor a ListenerSpec",
            "… is one listener, and several are expected: put it into a list",
            "… names … listeners, and one is expected",
            "… names … listeners: call bind_many",
            "… is no list of listeners",
            cause="the argument of `bind_many`, or of a method of `Client`, is of another type",
            remedy='write `("127.0.0.1", 8000)`, or a list of such',
        ),
        entry(
            "this binder is too old for …: it does not know '…'",
            "this binder is the Ruby program, which has TCP listeners without options only",
            cause="the library is newer than the running binder, which has no listeners of this kind, or with such an "
            "option",
            remedy="`multibinder upgrade`; [move from the Ruby program](how-to/from-ruby.md)",
        ),
        entry(
            "… is not set, and netns=… needs a binder",
            cause="`fallback=True` binds in this process, which is in one network namespace",
            remedy="set MULTIBINDER_SOCK, or leave `netns` out",
        ),
        entry(
            "… has no address any more (…): name it by address",
            "… is no socket that a binder can hold",
            cause="a socket was given to `release` after it was closed, or is none that the binder gave",
            remedy="give the address instead",
        ),
        entry(
            "timeout … leaves no time to ask",
            "drain inf would never close the port",
            "… is negative: give a number of seconds from 0",
            "…: give a number of seconds",
            "socket_path is of type …: give the path as a str or a Path",
            cause="an argument of the library has a value or a type that it cannot have; nothing was sent",
            remedy="as the message says",
        ),
        entry(
            "the path of the control socket has … bytes, that of a Unix socket may have …",
            "the path of the control socket has a NUL in it",
            cause="MULTIBINDER_SOCK, `--socket` or `socket_path=` names a path that no Unix socket can have",
            remedy="a shorter path for the binder, and for its clients",
        ),
        entry(
            "this Client is in use: another thread, or the code that a signal interrupted, waits for an answer",
            "this Client was made by process …, of which process … is a fork",
            "this Client is closed",
            cause="a `Client` is one connection, on which one answer at a time is expected",
            remedy="one `Client` for each thread and each process; `bind` and `bind_many` make their own",
        ),
        entry(
            "…: not released: … has no claim, but … has",
            cause="a warning of `multibinder.release`: the claim was made with another `owner=`",
            remedy="give the owner that `multibinder list` shows",
        ),
        entry(
            "the listener on … was released: the binder has closed it for all processes; stop, or bind it again",
            cause="`accept()`, after `multibinder release`, `--orphan-ttl`, or the last owner's `release`",
            remedy="stop the server, or bind the address again; `multibinder list` shows what the binder holds",
            fragment="was released: the binder has closed it for all processes",
        ),
        entry(
            "the listener on … was shut down in this process; bind again to accept",
            "the listener on … was closed in this process",
            cause="`accept()`, after `shutdown()` or `close()` of the same object, perhaps in another thread",
            remedy="none, if it is how the server stops; the port stays open in the binder",
            fragment="in this process",
        ),
        entry(
            "a socket of … has no address that multibinder supports",
            cause="`SharedListener.address` of a socket that is no TCP socket, which the program has made itself",
            remedy="`getsockname()`",
        ),
        entry(
            "the listener on … was shut down by another process",
            cause="`accept()` in non-blocking mode, in the milliseconds until the binder has repaired the listener",
            remedy="none: it is a BlockingIOError, as without a client; find the program that calls shutdown(2)",
            fragment="was shut down by another process",
        ),
        entry(
            "this binder (…) cannot … a listener: upgrade it ('multibinder upgrade'), or release without …",
            cause="`drain` and `leave_open` need a newer binder than the one that runs; nothing was released",
            remedy="`multibinder upgrade`. Without drain waiting clients are reset; without leave_open the port closes",
        ),
        entry(
            "MULTIBINDER_SOCK is not set: binding in this process, so a restart will refuse connections",
            cause="a warning of `fallback=True` where there is no binder",
            remedy="none on a laptop; in production set MULTIBINDER_SOCK",
            fragment="is not set: binding in this process",
        ),
    ),
)

BIND = Section(
    "Binding an address",
    "The binder's refusals (`BindError`, `NotAllowed`, `LimitReached`) and addresses that make no sense "
    "(`AddressError`). After a refusal nothing of the request was bound.",
    (
        entry(
            "Could not bind: …: address already in use, by …",
            cause="another process listens there; it is named where the binder may see it, with its address if that is "
            "another one: `[::]` without v6only takes IPv4 too",
            remedy="stop it, or choose another port; where the message says so, v6only=true lets both be",
            fragment="or choose another port",
        ),
        entry(
            "Could not bind: …: address already in use, by …, which this binder holds for …",
            cause="the two addresses take the same port (one includes the other, or `::` takes IPv4 as well), and the "
            "listener is another user's; or they are one address in two notations",
            remedy="give v6only=true to the IPv6 one where the message says so; else release the listener, or choose "
            "another port",
            fragment="which this binder holds for",
        ),
        entry(
            "Could not bind: …: address already in use, and no process listens there",
            cause="a connection from that port, a socket that is bound and does not listen, or another network "
            "namespace",
            remedy="`ss -tanp 'sport = :PORT'` as root shows connections; end it, or choose another port",
            fragment="and no process listens there",
        ),
        entry(
            "Could not bind: …: address already in use; choose another address or port",
            cause="the address collides with a listener that the policy does not show to this user",
            remedy="choose another one, or ask who runs the binder",
            fragment="choose another address or port",
        ),
        entry(
            "Could not bind: …: it collides with … of the same request",
            cause="the request has two addresses that cannot both listen: one address in two notations, or addresses "
            "that overlap, for two users. `check` says so too",
            remedy="as the message says",
        ),
        entry(
            "address already in use, by a process that this user may not see",
            cause="another user's process listens there, and the binder may not look into it",
            remedy="`ss -ltnp` as root, or the drop-in `ptrace.conf`",
            fragment="a process that this user may not see",
        ),
        entry(
            "Could not bind: …: option …: operation not permitted: … needs …",
            "Could not bind: …: option …: operation not permitted: net.core.… is …; raise it",
            cause="the binder has no right to set this option, or to set it so high",
            remedy="the drop-in `socket-options.conf` (systemd/examples/README.md)",
            fragment="in the binder (drop-in socket-options.conf)",
        ),
        entry(
            "Could not bind: …: option …: …: this kernel has no … for such a socket",
            "Could not bind: …: option interface: no such device",
            "Could not bind: …: option mss: invalid argument: TCP_MAXSEG is a number from 88 to 32767",
            cause="the kernel refuses the option for this kind of socket (docs/reference/kinds.md)",
            remedy="leave the option out, or give another value",
            fragment="for such a socket; bind without it",
        ),
        entry(
            "Could not bind: …: address family not supported by protocol: this kernel has no vsock",
            cause="the kernel has no vsock, or the binder's unit does not allow its address family",
            remedy="`modprobe vsock`; the drop-in `vsock.conf` (systemd/examples/README.md)",
            fragment="(drop-in vsock.conf)",
        ),
        entry(
            "Could not bind: …: protocol not supported: this kernel has no Multipath TCP",
            cause="the kernel was built without it, or net.mptcp.enabled is 0",
            remedy="`sysctl -w net.mptcp.enabled=1`, or an address of TCP",
            fragment="this kernel has no Multipath TCP",
        ),
        entry(
            "Could not bind: …: permission denied: a port below … needs CAP_NET_BIND_SERVICE",
            cause="the binder is not privileged",
            remedy="`AmbientCapabilities=CAP_NET_BIND_SERVICE` in its unit, or net.ipv4.ip_unprivileged_port_start",
            fragment="needs CAP_NET_BIND_SERVICE in the binder",
        ),
        entry(
            "Could not bind: …: cannot assign requested address: no interface of this host has …",
            cause="the address is another host's, or not there yet",
            remedy="the option `freebind`, or `sysctl -w net.ipv4.ip_nonlocal_bind=1`, for an address that moves "
            "between hosts",
            fragment="no interface of this host has",
        ),
        entry(
            "Could not bind: …: too many open files: raise LimitNOFILE=",
            cause="the binder, or the host, has no descriptor left",
            remedy="`LimitNOFILE=` in the binder's unit, or a lower `--max-listeners`",
            fragment="raise LimitNOFILE= in the binder's unit",
        ),
        entry(
            "Could not bind: …: the listener exists with …, and … was asked for",
            cause="what cannot change while a socket lives (v6only, address) was asked for with another value; or "
            "another name, and other owners have claims to the listener",
            remedy="release the listener first, or ask for the same",
        ),
        entry(
            "Could not bind: …: …",
            cause="the kernel refused bind(2) or listen(2), for the reason that follows",
            remedy="as the reason says",
        ),
        entry(
            "uid … has its limit of … listeners",
            "this binder holds its limit of … listeners",
            cause="a limit that keeps one user, or all, from taking every descriptor",
            remedy="release what is not needed, or raise the flag that the message names",
        ),
        entry(
            "uid … asks more than … times a second",
            "this binder is asked more than … times a second",
            cause="a limit on the rate of requests",
            remedy="ask less often: several binds fit into one request. Or raise the flag that the message names",
        ),
        entry(
            "… descriptors are … to clients … do not read",
            cause="clients asked for listeners and do not read the answers",
            remedy="repair or stop the client; `event=turned-away` in the log has its pid. Or raise the flag that is "
            "named",
        ),
        entry(
            "unfinished requests of uid … have more than … bytes",
            "unfinished requests have more than … bytes",
            cause="clients send long requests and do not finish them",
            remedy="repair or stop the client; `event=turned-away` in the log has its pid",
        ),
        entry(
            "uid … has … clients, its limit",
            "this binder serves … at once",
            "too many clients: …",
            cause="a limit on the number of connections, and no idle client can be evicted for this one",
            remedy="close connections after use, or raise `--max-clients` or `--max-clients-per-uid`",
        ),
        entry(
            "Not allowed to …",
            cause="a rule of the policy denies it, or no rule allows it",
            remedy="`multibinder policy check --uid … --bind …` explains the decision, rule by rule",
        ),
        entry(
            "owner … belongs to uid …",
            "uid … may not move claims from one user to another",
            cause="`label:uid` names another user's claims. Each user has labels of its own, and only root and the "
            "binder's own user may release or move those of others",
            remedy="leave `:uid` out for your own, or ask as root",
        ),
        entry(
            "host … is a name: give a numeric address",
            "host … is ambiguous",
            "host … is not a valid IP address",
            "host … has an IPv6 scope",
            cause="a listener must not depend on DNS or on a guess",
            remedy="write the numeric address: `0.0.0.0` for every IPv4 address, `::` for IPv6",
        ),
        entry(
            "port … is out of range",
            "… has no port: write host:port",
            "…: … is not an IPv… address",
            "… addresses are not supported, but …",
            "…: … is no prefix of a … address",
            "… is no vsock address: write …",
            cause="the text is no address of a listener",
            remedy="`192.0.2.1:80`, `[2001:db8::1]:443`, `udp@192.0.2.1:53`, `vsock@3:1024`",
        ),
        entry(
            "… is no usable abstract name: …",
            "… has … bytes, an abstract name may have …",
            "… is no absolute path",
            "… has control characters, or is not UTF-8",
            "… is not normalized: …",
            "… has … bytes, the path of a Unix socket may have …",
            "a Unix socket with the name … is no listener",
            "…: an abstract name has no …: every user can connect",
            "…: a datagram socket has no backlog; …",
            cause="the path or the abstract name of a Unix socket, or an option that it has not",
            remedy="`unix@/run/app/app.sock`, `uxdg@/run/app/log`, `unixseq@/run/app/seq`, `abns@app`",
        ),
        entry(
            "port … is of type …: …",
            "… is of type …: give …",
            "ListenerSpec takes an Address and Options",
            "v6only has a meaning for IPv6 addresses only",
            "…: tos … has bits of ECN",
            "… … is out of range: … to …",
            "interface … is no name of a network interface",
            "netns … is not usable",
            "user … this host has no such user",
            "group … this host has no such group",
            "shards … is of type …: give a number, or 'cpus'",
            "shards … is out of range: 1 to …",
            "…: a listener of the kind … has no shards: the kernel cannot share its clients",
            "…: shards are on one port",
            "… names more than … listeners",
            "…: a range of ports begins with 1",
            "…: the range of ports ends before it begins",
            "…: a listener of the kind … has no option …, but …",
            "…: a listener of the kind … has no shards",
            "… is not usable: 1 to 128 of A-Z a-z 0-9 _ . @ / + -",
            "owner … is not usable: after the colon of label:uid is a user id",
            cause="an option, a name or a label with a value that it cannot have",
            remedy="as the message says",
        ),
        entry(
            "a backlog of … was asked for, but the kernel allows …",
            cause="a warning: net.core.somaxconn is lower than the backlog",
            remedy="`sysctl -w net.core.somaxconn=…`, and bind again",
        ),
    ),
)

START = Section(
    "Starting and upgrading the binder",
    "`multibinder serve` and `multibinder upgrade` exit with 1.",
    (
        entry(
            "the system refused what a start needs: … (at …)",
            cause="the kernel had no descriptors or memory, or a file system failed, and a start needs them; or the "
            "installation is incomplete",
            remedy="as the error says; a keeper has the sockets still, and starts the binder again",
        ),
        entry(
            "… is served by … already",
            cause="a second binder on the same path",
            remedy="stop the first, or choose another `--socket`",
        ),
        entry(
            "… exists and is not a socket",
            cause="a file is in the way; it is left alone",
            remedy="another `--socket`, or remove the file",
        ),
        entry(
            "…: the path has … bytes, a Unix socket's may have …",
            cause="the kernel's limit on the path of a Unix socket",
            remedy="a shorter `--socket`",
        ),
        entry(
            "… belongs to uid …, who could replace the files",
            "everybody may write in …",
            cause="another user could replace this control socket by another; uid 65534 may be a user that the user "
            "namespace of the binder does not map",
            remedy="use `/run/multibinder`, or `chown`, `chmod o-w`; map root into the user namespace, or start the "
            "binder outside of it",
        ),
        entry(
            "… is a link; see who made it",
            "… is not ours: uid … made it",
            "…: another process has replaced the control socket",
            cause="another user wrote into the control socket's directory",
            remedy="find out who, remove the file, use a directory that others cannot write to",
        ),
        entry(
            "…: cannot set the mode …",
            cause="the control socket that was passed on belongs to another user",
            remedy="run as that user, or as root",
            fragment="cannot set the mode",
        ),
        entry(
            "cannot give the control socket to group …",
            "--group …: there is no such group",
            cause="the group does not exist, or the binder's user is not in it",
            remedy="`getent group`; run as root or as a member",
        ),
        entry(
            "--pidfile …: cannot write it",
            "--log-file …",
            cause="the directory is missing or not writable, or the file is another user's",
            remedy="as the reason that follows says",
        ),
        entry(
            "…: cannot create the control socket: …",
            cause="the directory is missing, not writable for this user, full, or on a read-only file system",
            remedy="as the message says: `mkdir -p`, another `--socket`, or run as the directory's owner",
        ),
        entry(
            "Could not upgrade: …",
            cause="the newly installed code cannot start; the running binder goes on, and nothing was lost",
            remedy="repair the installation (the reason follows) and upgrade again",
        ),
        entry(
            "could not upgrade: …",
            cause="the new version passed its trial start, and then could not be executed or ended before it served; "
            "the old version goes on, and no listener was lost",
            remedy="repair the installation and upgrade again",
        ),
        entry(
            "the names of … descriptors take … bytes, and one string of an environment has at most …",
            cause="the kernel passes the names of all listeners to the new version as one string",
            remedy="release listeners, or use several binders",
        ),
        entry(
            "version … does not know …, and would lose … of the listeners: …",
            cause="an upgrade to an older version that cannot hold such listeners",
            remedy="release the listeners that the message names, or stay with this version",
        ),
        entry(
            "RLIMIT_NOFILE has been lowered to …, and the new version needs … descriptors",
            cause="another process has lowered the limit of the running binder (prlimit)",
            remedy="the `prlimit` command that the message gives",
        ),
        entry(
            "…: there is no such file, and a policy is in force",
            cause="the policy file has been removed; without it everybody would be allowed everything",
            remedy="restore the file",
        ),
        entry(
            "the trial start failed: …",
            cause="the host lacks a resource that a start needs; the running binder goes on",
            remedy="the reason follows: raise the limit, or free the resource",
        ),
    ),
)

POLICY = Section(
    "The policy file",
    "From `multibinder serve`, `multibinder policy check` and `multibinder policy lint`. Each begins with the file, "
    "and the rule. [The policy file](reference/policy.md) has all keys.",
    (
        entry(
            "cannot read the policy: …",
            "no policy: a regular file of at most 1 MiB is expected",
            cause="the file is missing, not readable by the binder's user, a directory, or too large",
            remedy="as the reason says; mode 0644 will do",
        ),
        entry(
            "…: belongs to uid …, who could allow themselves anything",
            "others may write it (mode …), so anything may be in it",
            cause="a user other than root and the binder's could change the policy",
            remedy="`chown root`, `chmod go-w`",
        ),
        entry(
            "not TOML: …",
            cause="a syntax error, at the line that is named",
            remedy="correct it; texts need quotation marks",
        ),
        entry(
            "give either allow or deny",
            "no method; name some of …",
            "there is no method …",
            "there is no option …",
            "… is an empty list, which no client can match",
            "unit is an empty string",
            cause="a rule that is incomplete, or has a word that does not exist",
            remedy="as the message says",
        ),
        entry(
            "… is no address pattern",
            "… would match nothing",
            "the prefix length is a number",
            "… has bits beyond /…",
            "* is every port; write * or a range",
            "a port is a number from 0 to …, and a range goes upwards",
            "write an absolute path, with / at the end",
            cause="an address pattern that the policy cannot use",
            remedy="`192.0.2.0/24:80`, `[2001:db8::/32]:1024-65535`, `*:443`, `ipv4@*:*`, `udp@*:53`, `vsock@*:1024`",
        ),
        entry(
            "…: rule …: …",
            cause="the rule that is named, by its number and name, has an address, a user or a word that cannot be "
            "used",
            remedy="the rest of the message is in this table",
            fragment=": rule …",
        ),
        entry(
            "… is no …'s number",
            "there is no … … on this host",
            cause="a user or group that this host does not have",
            remedy="`getent passwd`, `getent group`; or write the number",
        ),
    ),
)

COMMANDS = Section(
    "Other commands",
    "`multibinder systemd install`, `exporter`, `status`. They exit with 1.",
    (
        entry(
            "the service runs as the user multibinder, who cannot use this installation",
            cause="the installation, or its Python, is below `/root`, or was made under umask 077; nothing was written",
            remedy="`umask 022; /usr/bin/python3 -m venv /opt/multibinder`, and install there",
        ),
        entry(
            "changed by hand, so nothing was written",
            cause="a unit file is not as `systemd install` wrote it",
            remedy="move the change to a drop-in (`systemctl edit`), then `--force`",
        ),
        entry(
            "there are no commands … in …",
            "the unit files are missing; the installation is not complete",
            "has a character that a unit's ExecStart= cannot have",
            cause="the project is not installed, or in a directory with an unusual name",
            remedy="`pip install .` into `/opt/multibinder`",
        ),
        entry(
            "there is no such directory",
            "…: cannot read …: …",
            "…: cannot write: …",
            cause="`--prefix` or `--textfile` names something that is missing, or not writable by this user",
            remedy="as the reason says; `systemd install` needs root",
        ),
        entry(
            "cannot listen on …",
            cause="the exporter's port is taken, or may not be bound by this user",
            remedy="`exporter --listen` with another port",
        ),
        entry(
            "the binder at … is older than this command (version …)",
            cause="a binder of an older version runs",
            remedy="`multibinder upgrade`",
        ),
    ),
)

PROTOCOL = Section(
    "The protocol",
    "For authors of a client or a binder (`RemoteProtocolError`; JSON-RPC codes -32700 to -32600). A user sees "
    "them only if the program at the other end is no multibinder, or has a bug.",
    (
        entry(
            "… answers were not acknowledged",
            cause="a client promised to acknowledge what it receives, and has not done so 1,000 times",
            remedy="repair the client: a `received` for each result with `acknowledge`",
        ),
        entry(
            "a message has more than … bytes",
            cause="a request above `--max-request`, or an answer that is no JSON-RPC",
            remedy="fewer binds in one request; is the path really the binder's control socket?",
        ),
        entry(
            'params is empty: give at least one {"address"',
            "params[…]: …",
            cause="`params` of bind, check or release is not a list of objects with `address` and `port`",
            remedy="as the message says",
        ),
        entry(
            "asked with id …, answered with id …",
            "asked for … listeners",
            "a result that makes no sense",
            "… is not the control socket of a binder: it answers …",
            "not a JSON object",
            "JSON-RPC batches are not supported",
            cause="what came is no message of the protocol, or not the answer to what was asked",
            remedy="`$MULTIBINDER_SOCK` or `--socket` names another program's socket: give the binder's. Else a bug: "
            "please report it",
        ),
        entry(
            "the descriptor for … is of no use",
            "the descriptor for … is no … socket",
            "asked for …, but the socket that came …",
            cause="the descriptor that came is not the listener that was asked for",
            remedy="restart the binder; is the program there really a binder?",
        ),
    ),
)
