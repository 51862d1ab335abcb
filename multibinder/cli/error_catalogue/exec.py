"""The errors of ``multibinder exec``, and those that ``run`` shares with it."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

EXEC = Section(
    "multibinder exec, multibinder run",
    "Exit codes of 'exec': 127 the command is not found, 126 it cannot be executed, 125 it was not tried, because the "
    "binder or this command failed, 2 wrong usage; else the command's own. `-b` of both has the form "
    "`ADDRESS[,OPTION=VALUE…][=NAME]`.",
    (
        entry(
            "…: … has no value: write …=…",
            "…: … is given twice",
            "…: addresses stand before options, and … is no option",
            "… has no address: write 0.0.0.0:80, [::]:80 or unix@/path first",
            "…: … is true or false, not …",
            "…: the mode is written as chmod(1) has it",
            "…: … is a number, as in …=…, not …",
            "…: there is no option …; a listener has …",
            cause="an option of `-b` is not one, or has a value that it cannot have",
            remedy="`-b 0.0.0.0:443,backlog=8192,shards=4=web`: addresses, options, and the name at the end; "
            "[how-to/exec](how-to/exec.md) has all options",
        ),
        entry(
            "…: the name … is not usable: 1 to 64 of A-Z a-z 0-9 _ . -",
            "…: the name is the last part, after the options",
            "is the private listener for the checks of 'run': choose another name",
            cause="the name at the end of `-b`",
            remedy="a word with a letter first, after the options: `-b 0.0.0.0:80,backlog=100=web`",
        ),
        entry(
            "… is given …: a listener has one name",
            "… and … have the same name …: give each a name of its own",
            cause="two `-b` are about one listener, or have one name",
            remedy="leave one out, or join their addresses in one `-b` with a comma",
        ),
        entry(
            "…: port 0 stands alone, because its name finds one listener",
            "for port 0 the kernel chooses a port, which the next start finds by the name of the listener",
            cause="a start finds the port that an earlier one got by the name of the listener",
            remedy="`-b 127.0.0.1:0=NAME`, with a name that no other service of this user has",
        ),
        entry(
            "… names no listener: there is …. If the program needs the braces itself, start it by a script",
            "… stands for several listeners: name each of them: …",
            cause="`{NAME}` in the command or in `--env` is not the name of a `-b`, or is that of a range, a list or "
            "shards",
            remedy="correct the name; `{web.0}`, `{web.1}` are the listeners of one `-b`",
        ),
        entry(
            "the program would not know of …: the others are passed by {NAME}",
            cause="one listener is passed by `{NAME}`, and another one in no way: its clients would wait for ever",
            remedy="use its name too, or say with `--style` how the program takes the rest",
        ),
        entry(
            "there is no style …: the styles are …",
            "the style stdin passes one listener, and there are …",
            "the style stdin needs a listener",
            cause="`--style`",
            remedy="[how-to/exec](how-to/exec.md) has a table of programs and their styles",
        ),
        entry(
            "… cannot be the name of a variable: write --env KEY=VALUE",
            "the command or a variable has a NUL in it",
            "there is no command",
            cause="the kernel has no form for such a command or variable",
            remedy="write the command after `--`, and `--env KEY=VALUE`",
        ),
        entry(
            "command not found: …",
            cause="there is no file of this name, or not in PATH. The binder was not asked; listeners of an earlier "
            "start stay open",
            remedy="install the package, or write the whole path",
        ),
        entry(
            "cannot execute …: the interpreter in its first line, or its dynamic loader, is not there",
            "cannot execute …: it is a directory",
            "cannot execute …: permission denied",
            "cannot execute …: its arguments and environment are too long for the kernel",
            cause="execve(2) refuses the file",
            remedy="as the message says",
        ),
        entry(
            "descriptor … of the caller (…) is closed: a listener has this number in the program",
            cause="the process that started 'exec' had left a descriptor open, at a number from 3 on",
            remedy="close it in the caller (`3<&-`), if the program does not need it",
        ),
        entry(
            "the limit of open files is … instead of …, because the listeners need as many",
            cause="the program could open few or no files with the listeners that it inherits",
            remedy="`LimitNOFILE=` in the unit, or `ulimit -n`",
        ),
        entry(
            "… stays as it is, because no -b has a name",
            cause="braces in the command, as `{web}`, and no listener has a name",
            remedy="`-b ADDRESS=web`, if it was to be the descriptor",
        ),
        entry(
            "… cannot take a listener…: it binds its ports itself",
            "dovecot shuts down each listener of LISTEN_FDS that its configuration does not name",
            "gunicorn with --bind fd:// removes the path of a Unix socket when it ends",
            "apache2 takes a listener only by mod_systemd, without which Debian builds it",
            "unbound takes no socket where systemd does not run",
            "php-fpm removes the path of a Unix socket when it ends, also under the next copy",
            "… reads no variable about listeners, and binds by itself",
            cause="the program is known not to use what it inherits, or to break it",
            remedy="as the message says; [daemons](daemons.md)",
        ),
        entry(
            "… listeners need a limit of … open files, and the hard limit is …",
            cause="RLIMIT_NOFILE is lower than the number of listeners",
            remedy="`LimitNOFILE=` in the unit, or `ulimit -n`",
        ),
        entry(
            "the binder at … took its listeners back before it knew that they had come",
            cause="the binder ended at this moment",
            remedy="none: `--wait` asks the next binder; start the command again",
        ),
        entry(
            "…; this binder is too old for that: 'multibinder upgrade'",
            cause="the binder that runs is older than this command, and does not know an option",
            remedy="`multibinder upgrade`, or `systemctl reload multibinder`",
            fragment="this binder is too old for that",
        ),
    ),
)
