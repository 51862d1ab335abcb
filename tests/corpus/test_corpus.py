"""A sample of the corpus, and of the lines by the grammar. 'make corpus' runs all."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.corpus.run import run_apart
from tests.corpus.shapes import SHAPES
from tests.haproxy.versions import HAPROXY
from tests.support import require

_SAMPLE = ("many-options", "if-nested", "log-forward", "a-file-and-a-directory", "stats-socket-taken", "grammar-3")


@pytest.mark.parametrize("name", _SAMPLE)
def test_a_plain_configuration_listens_and_serves_as_without_us(name: str) -> None:
    require("haproxy", shutil.which(HAPROXY), f"there is no {HAPROXY}")
    require("root", os.geteuid() == 0, "a network namespace needs root")
    for tool in ("unshare", "ip", "openssl"):
        require(tool, shutil.which(tool), f"there is no {tool}")
    done = run_apart(name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_corpus_has_sixty_shapes() -> None:
    assert len(SHAPES) >= 60
