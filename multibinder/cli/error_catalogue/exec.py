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
