"""Take the slots out of a configuration that do not stand in a bind of HAProxy's: no process would accept there.

HAProxy takes a listener's descriptor in a ``bind`` line of a frontend, listen, peers or log-forward section, and in
``stats socket`` of the global section (measured on 2.4 to 3.5). It does not bind a proxy that is ``disabled``, and it
does not read every conditional block. Only HAProxy knows which blocks it reads. So ``probe`` makes a configuration that
HAProxy is to check once more, and ``unread_blocks`` finds in its messages what it has read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from multibinder_haproxy.config.lint import lint, notes
from multibinder_haproxy.config.model import Config, Place, UnusedBind
from multibinder_haproxy.config.reading import IN_A_COMMENT, Reading

#: HAProxy prints this, with the number of a file and the number of a line in it, when it reads the block of that line.
#: The line 0 is the end of the file.
_NOTICE = '.notice "multibinder: block {file} {line}"'
_NOTICED = re.compile(r"'multibinder: block (\d+) (\d+)'")


def selected(config: Config) -> Config:
    """Return a configuration whose slots are those that HAProxy reads as a bind. A conditional block counts as read."""
    config = msgspec.structs.replace(config, rendered=config.digest())
    reading = Reading(config)
    return _with_binds_of(
        config, reading, [*config.warnings, *lint(reading)], notes(reading), conditional=reading.is_conditional
    )


def probe(config: Config) -> dict[str, bytes] | None:
    """Return the files with which ``haproxy -c -V`` says which blocks it reads; None if no bind of ours depends on it.

    Give what HAProxy printed to ``unread_blocks``, whatever the exit code. The files need no sockets.
    """
    if not config.conditional:
        return None
    files = {}
    for index, (file, blocks) in enumerate(Reading(config).blocks.items()):
        text = config.plain()[file].decode("latin-1")
        probed = []
        for number, line in enumerate(text.split("\n"), 1):
            probed.append(line)
            if number in blocks:
                probed.append(_NOTICE.format(file=index, line=number))
        end = _NOTICE.format(file=index, line=0)
        files[file] = "\n".join([*probed, end, ""] if probed[-1] else [*probed[:-1], end, ""]).encode("latin-1")
    return files


def unread_blocks(config: Config, output: str) -> dict[str, set[int]] | None:
    """Return the blocks that HAProxy does not read, by file, as Reading takes them.

    ``output`` is what HAProxy printed about the files of ``probe``. Returns None if it did not read all of them to the
    end: it will say why.
    """
    noticed = {(int(file), int(line)) for file, line in _NOTICED.findall(output)}
    if any((index, 0) not in noticed for index in range(len(config.files))):
        return None
    return {
        file: {line for line in blocks if (index, line) not in noticed}
        for index, (file, blocks) in enumerate(Reading(config).blocks.items())
    }


def decided(config: Config, unread: Mapping[str, Collection[int]]) -> Config:
    """Return a configuration without the slots in blocks that HAProxy does not read."""
    before, reading = Reading(config), Reading(config, unread)
    warnings = _replaced(config.warnings, lint(before), lint(reading))
    return _with_binds_of(
        config, reading, warnings, _replaced(config.notes, notes(before), notes(reading)), conditional=True
    )


def _replaced(sentences: Sequence[str], old: Collection[str], new: Sequence[str]) -> list[str]:
    return [*(sentence for sentence in sentences if sentence not in old), *new]


def _with_binds_of(
    config: Config, reading: Reading, warnings: Sequence[str], remarks: Sequence[str], *, conditional: bool
) -> Config:
    """Return the configuration with the slots that HAProxy reads as a bind, and the plain address in all others."""
    disabled = {section for section in reading.sections if reading.is_disabled(section)}
    reasons = {
        number: f"its {bind.section} is disabled"
        for bind in reading.binds
        if bind.section in disabled
        for number in bind.occurrences
    }
    read = {number for bind in reading.binds for number in bind.occurrences} - reasons.keys()
    used = {reading.occurrences[number].key for number in read}
    unused = [
        UnusedBind(each.key, each.file, each.line, reasons.get(number) or reading.why_unread(number))
        for number, each in enumerate(reading.occurrences)
        if each.key not in used
    ]
    said = [(each, f"{each.file}:{each.line}: {each.key} is not bound: {each.why}") for each in unused]
    return msgspec.structs.replace(
        config,
        files=reading.texts(read) if len(read) < len(reading.occurrences) else config.files,
        slots=[slot for key, slot in reading.slots.items() if key in used],
        places=[Place(each.key, each.file, each.line) for each in (reading.occurrences[i] for i in sorted(read))],
        unused=[*config.unused, *unused],
        warnings=[*warnings, *(sentence for each, sentence in said if each.why != IN_A_COMMENT)],
        notes=[*remarks, *(sentence for each, sentence in said if each.why == IN_A_COMMENT)],
        conditional=conditional,
    )
