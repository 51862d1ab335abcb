"""The errors of ``multibinder run``: its options, its file, and what it says of a copy."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

RUN = Section(
    "multibinder run",
    "A reload that fails changes nothing: the old copies serve on.",
    (
        entry(
            "no command is given: write it after '--'",
            cause="there is nothing to run: neither the command line nor the file has a command",
            remedy="`multibinder run --name NAME -b ADDRESS -- COMMAND`, or `command = […]` in the file",
        ),
        entry(
            "no address is given: '-b ADDRESS'",
            cause="neither the command line nor the file has a listener for the command",
            remedy='`-b 0.0.0.0:8000`, or `bind = ["0.0.0.0:8000"]` in the file',
        ),
        entry(
            "the check of readiness asks at {ready}, and the command does not listen there",
            cause="`{ready}` stands in `--ready-http` or `--ready-tcp` alone",
            remedy="pass it to the command as well: `--bind fd://{ready}`; or ask at `{NAME}`, the address of a `-b`",
        ),
        entry(
            "… is too long a path: that of a Unix socket in it would have … bytes",
            cause="the directory of the instance has sockets, whose paths the kernel limits to 107 bytes",
            remedy="a shorter `--runtime-dir` or `--name`",
        ),
        entry(
            "… is not of the form KEY=VALUE",
            cause="`--env`",
            remedy="`--env KEY=VALUE`",
        ),
        entry(
            "…: there is no option …",
            cause="the file of `--config` has a key that is no option of `run`",
            remedy="correct the spelling; the names are those of the options, without the dashes before them",
        ),
        entry(
            "bind: a table [[bind]] has no 'address'",
            "bind: write a list of addresses",
            "…: write a text in quotes",
            "bind: write mode as a text",
            cause="an option in the file of `--config` has another type than it needs",
            remedy="the message names it, and says what it needs",
        ),
        entry(
            "… cannot be read: …",
            "… has more than … bytes",
            "… is no TOML: …",
            cause="the file of `--config` is missing, not readable, or broken",
            remedy="correct the file; at a reload, nothing was changed",
        ),
        entry(
            "the environment file … does not exist",
            "the environment file … cannot be read: …",
            "the environment file … has more than … bytes",
            "the environment file …, line …: this is not UTF-8",
            "the environment file …, line …: there is a NUL character",
            cause="the file of `--env-file` cannot be used; it is read at each start of a copy",
            remedy="correct the file, or write a `-` before a path that may be missing",
        ),
        entry(
            "the environment file …: … is left out: no variable can have this name",
            cause="a line such as `export NAME=VALUE`: the file is none of a shell",
            remedy="write `NAME=VALUE`",
        ),
        entry(
            "… and … are two checks of readiness: give one",
            "ready-after (… s) is not below ready-timeout",
            "ready-line is …: that is no regular expression: …",
            "canary-for is given without canary",
            "canary is …: give a number of copies, or a percentage",
            "… is …: it must be at least …",
            "… is …: give a number of seconds",
            "stop-signal is …: that is no signal",
            cause="an option of `run` has a value that makes no sense, or two exclude each other",
            remedy="correct the option, as the message says",
        ),
        entry(
            "… is no URL of a check: write http://HOST:PORT/PATH",
            "… is no address to connect to: write HOST:PORT",
            "… is a name: give the address itself, or 'localhost'",
            "https cannot be checked: Python's ssl cannot be loaded: …",
            cause="`--ready-http` or `--ready-tcp` has an address that a check cannot use",
            remedy="give a numeric address, `localhost`, `{ready}`, the `{NAME}` of a bind, or a path",
        ),
        entry(
            "the start failed: …: …",
            "the reload failed: …: …",
            cause="something that `run` does not expect",
            remedy="please report it; the copies that serve are not touched",
        ),
        entry(
            "the binder cannot be asked: …",
            cause="`run` itself is at a limit, mostly of open files",
            remedy="raise `LimitNOFILE=`, or `ulimit -n`",
        ),
        entry(
            "the … hook cannot be started: …",
            "the … hook did not end within … s, and was killed",
            "the … hook failed: it …",
            cause="the shell command of `--pre-start`, `--post-ready` or `--pre-stop` failed; its last lines are shown",
            remedy="correct the command; a larger `--hook-timeout` gives it more time",
        ),
        entry(
            "there are two instances …, one of 'multibinder run' and one of HAProxy",
            "… is no kind of instance: write run:… or haproxy:…",
            cause="`reload`, `stop` and `instances` take the names of both kinds",
            remedy="write the kind before the name: `run:web`, `haproxy:web`",
        ),
        entry(
            "there is no instance … in … or …",
            cause="no instance of this name was started, or by a user with another runtime directory",
            remedy="`multibinder instances` lists them; `--runtime-dir` and `--haproxy-dir` are the directories",
        ),
        entry(
            "… does not run; 'multibinder run --name … ...' starts it",
            cause="there is a record of the instance, and no process `multibinder run`",
            remedy="start it. After a kill of `run` its copies serve on, and the next `run` takes them over; "
            "`multibinder stop` ends them",
        ),
        entry(
            "the 'multibinder run' of … does not answer within … s",
            "the 'multibinder run' of … runs, and nobody listens at …",
            "the 'multibinder run' of … answers what this version does not understand",
            "a 'multibinder run' of … has just been started",
            "… is stopped, but the process 'multibinder run' has not ended after … s",
            cause="`run` hangs, is stopped (SIGSTOP), starts or ends at this moment, or is of another version",
            remedy="try again; its log says more. Its copies serve on, also after a `kill -9` of `run`",
        ),
        entry(
            "the … of … is not done after … s, and goes on",
            cause="a new copy is not ready yet, or an old one still finishes",
            remedy="`multibinder instances NAME` shows the copies; a longer `--timeout`, a shorter `--drain-timeout`",
        ),
        entry(
            "the 'multibinder run' of … ended, or closed the connection, before the … was done",
            "the 'multibinder run' of … gave no status",
            cause="`run` ended meanwhile, or failed",
            remedy="its log says why: `journalctl -u multibinder-run@NAME`",
        ),
        entry(
            "…: permission denied; run this as the user of …, or as root",
            cause="the instance is another user's",
            remedy="run the command as that user, or as root",
        ),
        entry(
            "… belongs to …, and its '…' did not end within … s; a file or process of that user hangs",
            "… belongs to …, and … cannot be run as that user",
            cause="root runs a command on another user's instance as that user, and that failed",
            remedy="as that user: `multibinder reload NAME`",
        ),
        entry(
            "… is a HAProxy: it has no canaries to …",
            cause="`--continue` and `--abort` are for `run --canary`",
            remedy="`multibinder-haproxy reload NAME`",
        ),
        entry(
            "… is stopped, but its listeners could not be released: …",
            cause="the binder did not answer: the ports are open, and clients wait there",
            remedy="start the binder, and run `multibinder stop NAME` again",
        ),
        entry(
            "cannot find the command '…', which is installed with this one",
            "cannot execute …: …",
            cause="the installation is not whole",
            remedy="install multibinder anew",
        ),
        entry(
            "… runs already (pid …): 'multibinder reload …' replaces its copies",
            cause="another process is the `run` of the instance of this name",
            remedy="`multibinder reload NAME`, or another `--name`",
        ),
        entry(
            "no file of settings is named",
            "… was not read within … s",
            cause="the process that reads the file of `--config` at a reload hangs, or was started by hand",
            remedy="look at the file system of the file; nothing was changed, and the old copies serve",
        ),
        entry(
            "… needs a binder: start 'multibinder serve'",
            "… with … needs a binder: start 'multibinder serve'",
            "…: cannot bind: …",
            cause="`run` has no binder, and binds by itself: TCP, `udp@` and `unix@` without options",
            remedy="start a binder, and set `MULTIBINDER_SOCK` or `--socket`",
        ),
        entry(
            "listeners that are not used could not be released: …",
            cause="the binder does not answer, or refuses; no configuration names these listeners any more",
            remedy="nothing at once: the next reload releases them; `multibinder release ADDRESS` does it now",
        ),
        entry(
            "the private listener {ready} cannot be made: …",
            "no copy can be started: …",
            "no process can be started: …",
            cause="a limit is reached: of descriptors, of processes, of memory",
            remedy="raise it (`LimitNOFILE=`, `TasksMax=`); it is tried again, and the ports stay open meanwhile",
        ),
        entry(
            "…: cannot read: …",
            cause="a record in the instance's directory cannot be read",
            remedy="look at the mode and the owner of the file; the instance starts without it",
        ),
        entry(
            "the working directory …: …",
            cause="the directory of `--directory` cannot be entered",
            remedy="correct the path, or its mode",
        ),
        entry(
            "the new copy (pid …) … …",
            cause="the command has ended by itself, or was killed; its last lines are shown",
            remedy="look at these lines; a command that daemonizes needs its option for the foreground",
        ),
        entry(
            "the new copy was not ready within … s: waited for …",
            cause="the check of readiness did not succeed in time; the message says what it saw last",
            remedy="look at the output of the command; `--ready-timeout` gives it more time",
        ),
        entry(
            "canaries serve: 'multibinder reload --continue' or '--abort' decides first",
            "… is ending: the reload was given up",
            cause="a reload was asked for while the instance waits for a decision, or ends",
            remedy="decide first; or start the instance again",
        ),
    ),
)
