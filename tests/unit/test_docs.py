"""The documents against the tree: what they name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "hrm_dist|data_pipeline|launch|configs|tools|tests|docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_resolves(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_the_tree_in_the_readme_names_every_module_of_hrm_dist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("hrm_dist/   ") : text.index("launch/   ")]
    named = set(re.findall(r"(\w+)\.py", tree))
    modules = {path.stem for path in (ROOT / "hrm_dist").rglob("*.py")} - {"__init__"}
    assert named == modules
