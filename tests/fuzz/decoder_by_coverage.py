"""The decoder's fuzz target under atheris, for ``tests.fuzz.decoder``, with RUNS SEED FAILURES DIRECTORY."""

from __future__ import annotations

import os
import random
import sys

import atheris

with atheris.instrument_imports(include=["multibinder.wire"]):
    from tests.fuzz.decoder import LIMIT, check
    from tests.fuzz.inputs import CORPUS, TOKENS, Generator, corpus


def main(runs: str, seed: str, failures: str, directory: str) -> None:
    """Does not return: libFuzzer ends the process, and leaves an input that fails in ``failures``."""
    generator = Generator(seed, list(corpus("decoder").values()))

    def mutate(content: bytes, max_size: int, mutation_seed: int) -> bytes:
        """Mutate as libFuzzer does, and half of the time with knowledge of JSON."""
        kind = random.Random(mutation_seed).random()
        if kind < 0.25:
            return generator.stream()[:max_size]
        if kind < 0.5:
            return generator.mutated(content)[:max_size]
        mutated: bytes = atheris.Mutate(content, max_size)
        return mutated

    dictionary = f"{directory}/tokens"
    with open(dictionary, "w") as file:
        for token in TOKENS:
            file.write('"' + "".join(f"\\x{byte:02x}" for byte in token[:64]) + '"\n')
    # libFuzzer writes what it finds into the first directory.
    os.mkdir(found := f"{directory}/found")
    arguments = [sys.argv[0], f"-runs={runs}", f"-seed={seed}", f"-max_len={LIMIT + 1024}", "-timeout=60"]
    arguments += [
        f"-dict={dictionary}",
        f"-artifact_prefix={failures}/decoder-",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([*arguments, found, str(CORPUS / "decoder")], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
