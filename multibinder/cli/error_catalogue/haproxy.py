"""The errors of multibinder-haproxy, and messages of HAProxy and systemd that its users meet."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

HAPROXY = Section(
    "multibinder-haproxy",
    "Exit codes: 1 failed, 2 wrong usage, 3 HAProxy is not running, 4 no such instance, 5 HAProxy runs, but its "
    "master does not answer. A reload that is refused changes nothing; after one that failed, the message says who "
    "serves.",
    (
        entry(
            "…:…: Ruby is not run here",
            cause="an ERB template with Ruby code other than `bind_tcp`",
            remedy="convert the line as the message says, and rename the file to `.j2`",
        ),
        entry(
            "bind_tcp() has no option …",
            "this address has different options elsewhere",
            "the address and the port are missing",
            "the port is missing",
            "the address has a port already",
            "the address is …: write it in quotes",
            "HAProxy sets … by itself, at each load",
            "the port … is no number",
            "that is no TCP address",
            "HAProxy's variables are not known here",
            "a name is for one listener, and a range is several",
            "… is called with …: write …(…)",
            "give one path, and options by their names",
            "a path is absolute",
            "HAProxy reads … of a path as something else",
            "netns … has characters that a template cannot carry",
            "shard … is no number of a shard",
            cause="a call of `bind_tcp` in a template that makes no sense",
            remedy="[templates](reference/templates.md) has its arguments; one address has one socket, with one set "
            "of options",
        ),
        entry(
            "the new HAProxy has ended, or did not ask for the listeners",
            "the new HAProxy has ended before it accepted; its log says more",
            cause="the plain HAProxy of `leave` did not start: its configuration or its arguments are wrong. The "
            "instance serves on, and the binder holds what it held",
            remedy="HAProxy's own message is before this one; check it with `haproxy -c`",
        ),
        entry(
            "-x is what 'leave' adds: leave it out",
            "… has no listeners of a binder: stop it, and start HAProxy as it is",
            "…: cannot listen for HAProxy: …",
            cause="`leave` cannot give the listeners of this instance to a plain HAProxy; nothing was changed",
            remedy="as the message says; an instance without listeners of a binder needs no way back",
        ),
        entry(
            "an address stands in quotes: write …",
            "of Jinja2: put text of HAProxy's own between {% raw %} and {% endraw %}",
            cause="a template that is not Jinja2: an address without quotes, or `{{`, `{%` or `{#` of HAProxy's own (a "
            "log format, a JSON text)",
            remedy="as the message says: `{% raw %}{%ci}:%cp{% endraw %}`",
        ),
        entry(
            "…() works in templates only: rename the file to …",
            "in a Jinja2 file write …",
            "in an ERB file write …",
            cause="a bind line calls `bind_tcp` in a file that is no template, or in a tag of the other template "
            "language",
            remedy="as the message says",
        ),
        entry(
            "left to HAProxy, which binds them itself, so that a restart refuses their clients: …",
            "stays as it is: …",
            cause="plain `bind` lines whose meaning is not certain, or that the binder has no right to open",
            remedy="none is needed: HAProxy serves there as without multibinder. [An unmodified haproxy.cfg]"
            "(reference/haproxy-cfg.md) has the reasons, and what to write instead",
        ),
        entry(
            "…: its listener keeps its settings, because the binder refuses new ones: …",
            "the binder has no right to … any more: closed, for HAProxy",
            cause="a policy, or a capability that the binder had, was taken away while the instance has the listener",
            remedy="give the binder the right again, or leave the address to HAProxy: at its next start it binds it",
        ),
        entry(
            "… is a template already",
            "…: the name of a template ends in .j2, or -f takes it for a plain file",
            "… exists: give --force to replace it",
            cause="`convert` writes the template of a plain file, with a name of its own",
            remedy="as the message says",
        ),
        entry(
            "…: no template that was tried gives what taking over its binds gives",
            cause="`convert` has rendered its own result, and another configuration came out; a file that has the text "
            "`fd@{ADDRESS}` in a comment is such a one",
            remedy="remove such a text, or run the file as it is, which needs no template; nothing was written",
        ),
        entry(
            "the sandbox refuses this",
            cause="a template under `--sandbox` reaches into Python",
            remedy="compute it in a `--vars` file, or drop `--sandbox` if you trust every author of the template",
        ),
        entry(
            "cannot read the variables",
            "…: not valid …: …",
            "the variables must be an object at the top",
            "is the wrapper's own; rename it",
            cause="a `--vars` file that cannot be read, is no TOML or JSON, or has a name that templates have already",
            remedy="repair the file",
        ),
        entry(
            "…: cannot read it: …",
            "cannot read …: …",
            "it is not a regular file",
            "…: not UTF-8: …",
            "a value is not UTF-8",
            cause="a template, or a file that it includes, is missing, not readable by this user, no file (a FIFO, a "
            "device), or in another encoding",
            remedy="as the reason says; convert it to UTF-8",
        ),
        entry(
            "… and … would both become …: rename or remove one of them",
            cause="a directory has two files for one rendered file, as `web.cfg.j2` and `web.cfg`",
            remedy="rename or remove the one that you do not mean",
        ),
        entry(
            "… is not bound: …",
            cause="no port is opened for a `bind_tcp` that HAProxy would not accept on: its proxy is disabled, its "
            "block of `.if` is not read, it is in a comment, or it is not the address of a bind line",
            remedy="nothing, if that is meant; the rules are in "
            "[templates](reference/templates.md#which-sockets-are-opened)",
        ),
        entry(
            "this CLI takes 'disable frontend'",
            cause="a note: clients of an inherited socket wait after `disable frontend`, and are not refused",
            remedy="to close a port, remove the bind and reload",
        ),
        entry(
            "HAProxy ignores '…' on a socket that it inherits",
            "HAProxy ignores the backlog of '…' on a socket that it inherits",
            cause="a warning: the binder owns what belongs to bind(2) and listen(2)",
            remedy="as the message says: `bind_tcp(…, backlog=N)`, `v6only=true`, or bind this one without `bind_tcp`",
        ),
        entry(
            "… is also bound by …: each connection goes to one or the other",
            "addresses overlap: … with … of …",
            cause="a warning: two instances, or an instance and another program, have bound one address, or addresses "
            "of which one includes the other",
            remedy="stop one of them, or choose another address; it is right while one hands over to the other",
            fragment="to one or the other; stop one of them",
        ),
        entry(
            "HAProxy refuses the configuration",
            cause="`haproxy -c` found an error in the rendered configuration",
            remedy="HAProxy's own message follows; `multibinder-haproxy render FILE` shows the text",
        ),
        entry(
            "… is HAProxy …, which is too old",
            cause="the wrapper talks to HAProxy's master, which older versions do not have or which says too little",
            remedy="install HAProxy 2.0 or later; Debian 11 has 2.2, Debian 12 2.6",
        ),
        entry(
            "-c did not end within … s",
            "cannot run …",
            "cannot check: memfd_create failed: …",
            "cannot check: no room in memory for …",
            cause="the check itself failed: HAProxy hangs, cannot be executed, or there is no memory for the rendered "
            "files",
            remedy="as the message says",
        ),
        entry(
            "… need … open files at once, and RLIMIT_NOFILE allows …",
            cause="one descriptor for each bind, and the hard limit of this process or unit is lower",
            remedy="`LimitNOFILE=` in the unit, `ulimit -n` in a shell",
        ),
        entry(
            "the working directory was removed, and HAProxy loads nothing there",
            cause="the directory in which the command was started is gone (a deployment removed it)",
            remedy="change to a directory that exists, or give HAProxy an absolute one with `-C`",
        ),
        entry(
            "only a start can tell, and it fails",
            cause="a warning: a `chroot`, the directory of a `stats socket`, or room for `maxconn` is not there",
            remedy="make the directory, or lower `maxconn`; a reload that meets it ends HAProxy up to 2.6",
        ),
        entry(
            "the working directory … is gone",
            cause="a warning: the directory in which the instance was started was removed; HAProxy is in / now",
            remedy="write absolute paths, or start the instance again in a directory that stays",
        ),
        entry(
            "'daemon' would take HAProxy away from its supervisor",
            cause="a warning: `daemon` in a configuration that is started with -W",
            remedy="leave it out, or use -Ws, with which HAProxy itself ignores it",
        ),
        entry(
            "the new configuration binds …, and the binder cannot be asked",
            cause="a reload with new binds while the binder is away; one without would work",
            remedy="start the binder, and reload again",
        ),
        entry(
            "… (waited … s)",
            "the binder at … ended the connection: …",
            "the binder at … does not read",
            "the binder at … did not answer in time",
            "the binder at … ended before it knew that its listeners had come",
            cause="the binder was not there when HAProxy was to be started, nor within `--wait`",
            remedy="start the binder; the first part of the message is in the first table",
        ),
        entry(
            "the installation is not whole: …",
            cause="a module of multibinder, or of what it needs, cannot be imported, as in the middle of an upgrade",
            remedy="install multibinder anew; a HAProxy that runs is not touched",
        ),
        entry(
            "the binder at … sent …",
            "… is not the control socket of a binder: it answers …",
            cause="MULTIBINDER_SOCK names another program's socket; or this process may not open enough files",
            remedy="as the message says",
        ),
        entry(
            "HAProxy must run in master-worker mode",
            "-c and -cc only check",
            "-D would take HAProxy away",
            "HAProxy's arguments name no configuration",
            "HAProxy's option … needs a value",
            "-S …: the wrapper talks to HAProxy's master over a Unix socket",
            cause="HAProxy's arguments do not fit a supervised HAProxy that can reload",
            remedy="`-Ws -f FILE.j2`, without -c and -D",
        ),
        entry(
            "is no instance name",
            "too long for a Unix socket",
            "no such program; install HAProxy",
            "--sandbox goes with '-- HAPROXY ARGS...'",
            "cannot find the installed '…' command",
            cause="the command line of `run` or `check` names something that cannot be used",
            remedy="as the message says",
        ),
        entry(
            "… is running already, as process …",
            cause="a second `run` of the same instance",
            remedy="`multibinder-haproxy reload NAME`, or another `--name`",
        ),
        entry(
            "another reload or stop of … is under way",
            cause="reloads and stops of one instance are done one after the other",
            remedy="wait; `multibinder-haproxy status NAME` says what is going on",
        ),
        entry(
            "there is no instance …",
            "…: permission denied; run this as …'s user",
            cause="no instance of that name was started, or it is another user's, or in another `--runtime-dir`",
            remedy="`multibinder-haproxy status` lists all; run as root or as HAProxy's user",
        ),
        entry(
            "HAProxy does not run: its master does not answer at …: …",
            cause="HAProxy does not run",
            remedy="its log says why it ended; start it again",
        ),
        entry(
            "… runs, but does not answer at …: …",
            cause="HAProxy's master runs, and its workers may serve as ever, but it does not answer on its CLI (exit "
            "code 5). The CLI takes ten connections at once: monitoring that never closes one fills it",
            remedy="`ss -xp` shows who is connected to the socket, HAProxy's log what it is doing. SIGUSR2 to the "
            "master reloads, and SIGUSR1 stops, without its CLI",
        ),
        entry(
            "HAProxy's master (pid …) runs, but its directory … was removed",
            cause="a clean-up job, or the unit that owns the directory, removed it. HAProxy serves on (exit code 5)",
            remedy="as the message says; SIGUSR2 reloads HAProxy as well",
        ),
        entry(
            "cannot read the environment of HAProxy's master",
            "… does not run, and there is no record of its environment",
            cause="version 0.1 started HAProxy, which has ended, or may not be looked into",
            remedy="run the command as root, or start the instance again",
        ),
        entry(
            "no new worker answered within … s",
            cause="HAProxy is still loading, or hangs",
            remedy="its log says which; `--timeout` for thousands of certificates",
        ),
        entry(
            "HAProxy counts a failed reload",
            "HAProxy says no more",
            "HAProxy reloaded with the files as they were",
            cause="a configuration passed the check, and HAProxy failed to start with it; or the wrapper was removed",
            remedy="HAProxy's log has the reason: a directory that is missing, an address in use",
        ),
        entry(
            "still has connections, or loads its configuration, after … s",
            cause="`stop` waits for the connections that are open; the ports are closed by then",
            remedy="a longer `--timeout`, or `kill` the process that is named",
        ),
        entry(
            "… was started again while it was being stopped",
            cause="a supervisor, or another command, has started HAProxy meanwhile",
            remedy="stop it with its supervisor (`systemctl stop`)",
        ),
        entry(
            "is stopped, but …; run 'stop' again",
            "the listeners of … could not be released: …",
            "listeners that are not used could not be released: …; the next reload does it",
            cause="the binder did not answer, so ports that no process serves are still open",
            remedy="start the binder, then do as the message says",
        ),
        entry(
            "no worker came up with the current configuration on …",
            cause="the last start with this configuration passed the check and failed, so the last good one is used",
            remedy="correct what the message names. It is tried again once the configuration, or a file that it is "
            "made of, has changed, or at `multibinder-haproxy reload NAME`",
        ),
        entry(
            "HAProxy … before a worker answered; its log says more",
            "HAProxy's master has ended",
            cause="HAProxy ended while it loaded a configuration: it failed to start with it, or it was told to end",
            remedy="HAProxy's log has the reason: a directory that is missing, an address in use",
        ),
        entry(
            "… HAProxy does not accept connections on it",
            cause="a warning: a bind with a listener that no worker uses. Its port is closed, as HAProxy alone would "
            "leave it closed; no client hangs there",
            remedy="remove the bind, or what disables it",
            fragment="HAProxy does not accept connections on it",
        ),
        entry(
            "whether HAProxy accepts connections on each bind cannot be told, so none is closed: …",
            "HAProxy answers 'show fd' with …",
            "HAProxy's master did not answer 'show fd' for each of … descriptors",
            "worker … does not show its descriptors",
            cause="the master CLI does not answer, or `-S` gives it a level that may not `show fd`",
            remedy="leave `level` out of `-S`",
        ),
        entry(
            "…: cannot write: …",
            "…: cannot write: …; monitoring sees the previous summary",
            cause="the runtime directory is full or not writable; the running HAProxy is not touched",
            remedy="free some space, or choose another `--runtime-dir`",
        ),
        entry(
            "… binds are too many for one instance",
            cause="the record of some 5,000 binds does not fit into the environment (execve(2))",
            remedy="split the configuration into several instances",
        ),
        entry(
            "… belongs to …, who could replace the configuration in it",
            "can be written by others (mode …), who could replace the",
            "is a symbolic link: it is not followed",
            "is a symbolic link that … made",
            "… is not a file; remove it",
            "… belongs to …, and not to us",
            "… … (of …); remove it, or choose another --runtime-dir",
            cause="another user made the runtime directory or a file in it, or may write there",
            remedy="find out who made it, then remove it; or choose another `--runtime-dir`",
        ),
        entry(
            "… did not end within … s; a file or process of that user hangs",
            cause="root's command on another user's instance runs as that user, and waited: a template is a FIFO, say",
            remedy="run the command as that user, to see what it waits for",
        ),
        entry(
            "… cannot be run as that user",
            cause="root's command on another user's instance runs as that user, who cannot execute this installation",
            remedy="install in `/opt`, where every user may read",
        ),
        entry(
            "NOT the current configuration: HAProxy runs with the last good one",
            cause="the templates are broken, or HAProxy refuses the configuration; the reason is in the line before",
            remedy="correct them, then `multibinder-haproxy reload NAME`",
        ),
        entry(
            "multibinder holds none of its sockets",
            "multibinder holds none of HAProxy's sockets",
            cause="a warning: no `-f` names a template, or no template calls `bind_tcp`",
            remedy="rename the configuration to `.j2`, and write its binds with `bind_tcp`",
        ),
        entry(
            "MULTIBINDER_SOCK is not set: HAProxy binds by itself, and A RESTART WILL REFUSE CONNECTIONS",
            cause="a warning: nothing says where the binder is",
            remedy="set MULTIBINDER_SOCK",
            fragment="HAProxy binds by itself",
        ),
        entry(
            "this load is not watched: …",
            "cannot lock …/master.lock: …",
            cause="the process that waits for the end of a load could not be started; or the lock by which a second "
            "`run` sees the first could not be taken",
            remedy="`multibinder-haproxy reload NAME`",
        ),
        entry(
            "cannot execute …: …; is the haproxy package installed?",
            cause="HAProxy's program is gone or cannot be executed",
            remedy="install it, and start the service",
        ),
    ),
)

OTHERS_MESSAGES = Section(
    "What HAProxy and systemd say",
    "These are not multibinder's, but its users meet them.",
    (
        entry(
            "Failed to get the sockets from the old process!",
            cause="HAProxy asks its old worker for sockets (`-x`). That has none, because they come from the binder",
            remedy="nothing: it is harmless",
        ),
        entry(
            "not enough free sockets",
            cause="a descriptor's number is above what HAProxy's `maxconn` allows",
            remedy="raise `maxconn`",
        ),
        entry(
            "status=217/USER",
            cause="the unit's user does not exist",
            remedy="`systemd-sysusers multibinder.conf`",
        ),
    ),
)
