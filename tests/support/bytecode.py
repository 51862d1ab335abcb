"""Compile this checkout once for a run of the tests.

A run starts some ten thousand Python processes. Where PYTHONDONTWRITEBYTECODE is set, as in many container images, none
of them keeps what it compiled, and compiling is two fifths of the processor time of a binder's start.
"""

from __future__ import annotations

import compileall

from tests.support.installation import CHECKOUT


def compile_checkout() -> None:
    """Write the bytecode that is missing or older than its source. A directory that cannot be written is left."""
    for name in ("multibinder", "wrappers", "tests"):
        compileall.compile_dir(CHECKOUT / name, quiet=2)
