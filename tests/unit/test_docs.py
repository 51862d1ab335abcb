"""The pages have working links, generated pages agree with the code, and the README is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.library_page import GROUPS, library_page, public_names
from tools.reference import GENERATED, commands_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("systemd/**/*.md")}
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_reference_of_commands_agrees_with_the_commands() -> None:
    assert (ROOT / "docs" / "reference" / "commands.md").read_text() == commands_page(), "run 'make docs'"


def test_the_reference_of_the_library_agrees_with_the_docstrings() -> None:
    assert (ROOT / "docs" / "reference" / "library.md").read_text() == library_page(GENERATED), "run 'make docs'"


def test_the_reference_of_the_library_has_every_public_name_with_its_contract() -> None:
    assert sorted(name for group in GROUPS for name in group.names) == sorted(public_names()), "tools/library_page.py"
    entries = re.split(r"^###? (.+)$", library_page(GENERATED), flags=re.MULTILINE)
    contracts = dict(zip(entries[1::2], entries[2::2], strict=True))
    without = [name for name in public_names() if not re.search("^[A-Z].*[.:]$", contracts[name], re.MULTILINE)]
    assert not without, "these have no docstring, or no comment that begins with '#:'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_that_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    dead = [
        link
        for link in _LINK.findall(text)
        if not link.startswith(("http:", "https:", "#")) and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not dead


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text()) if "://" not in link}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {index}
    assert pages <= linked, sorted(str(page) for page in pages - linked)


def test_a_page_that_the_code_names_exists() -> None:
    named = set()
    for suffix in ("py", "yml", "json", "service", "toml"):
        for path in ROOT.glob(f"[!.]*/**/*.{suffix}"):
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()))
    assert {"docs/metrics.md", "docs/errors.md"} <= named
    assert not {name for name in named if not (ROOT / name).exists()}


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
