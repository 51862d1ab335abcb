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
            "the … hook cannot be started: …",
            "the … hook did not end within … s, and was killed",
            "the … hook failed: it …",
            cause="the shell command of `--pre-start`, `--post-ready` or `--pre-stop` failed; its last lines are shown",
            remedy="correct the command; a larger `--hook-timeout` gives it more time",
        ),
    ),
)
