"""The pages that users read: short enough, listed, and without a dead link."""

import re
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT, documentation, without_blocks

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What a code host and the site name the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere; from docs/, also those that leave it, as the site has docs/ alone."""
    return [link for link in LINK.findall(without_blocks(page)) if "://" not in link and not leads(page, link)]


def leads(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    on_site = page.parent != ROOT / "docs" or target.is_relative_to(page.parent)
    return on_site and target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", documentation(), ids=lambda page: page.name)
def test_no_link_is_dead(page):
    assert dead_links(page) == []


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Does it pay?\n[a](#does-it-pay) [b](#no) [c](none.md) ![d](none.png) [e](https://example.org)\n")
    assert dead_links(page) == ["#no", "none.md", "none.png"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_listed_on_the_site_in_its_index_and_in_the_readme():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert {name for entry in site for name in entry.values()} == pages
    assert {*LINK.findall((ROOT / "docs" / "index.md").read_text())} >= pages - {"index.md"}
    readme = {link.split("#")[0] for link in LINK.findall((ROOT / "README.md").read_text())}
    assert readme >= {f"docs/{page}" for page in pages - {"index.md"}}
