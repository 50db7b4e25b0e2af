"""The documents: what they name exists, and what they quote is said."""

import re
from pathlib import Path

import pytest

import ddimctl
from ddimctl.cli.command_reference import reference
from ddimctl.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs/commands.md").read_text("utf-8") == reference(), (
        "python -m ddimctl.cli.command_reference > docs/commands.md"
    )


def test_every_command_has_a_image():
    sections = re.split(r"^## ddimctl ", reference(), flags=re.M)[1:]
    assert len(sections) == len(COMMANDS)
    assert all("](images/" in section for section in sections)


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"[^\w -]", "", shown.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_troubleshooting_quotes_what_the_program_says():
    sources = Path(ddimctl.__file__).parent.rglob("*.py")
    said = "\n".join(re.sub(r'"\s*\n\s*f?"', "", source.read_text("utf-8")) for source in sources)
    headings = re.findall(
        r"^### (.+)$", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.M
    )
    assert len(headings) >= 15
    for heading in headings:
        for words in re.findall("`([^`]+)`", heading):
            assert words in said, words


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in readme
