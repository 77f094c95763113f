"""The documents against the tree: what they name exists, and their commands are as the programs want them."""

import argparse
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from docs import settings
from hrm_dist.config import ArchConfig, TrainConfig, load_config
from launch import submit

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "hrm_dist|data_pipeline|launch|configs|tools|tests|docs"
# `python -m MODULE ...`, whatever starts it.
COMMAND = re.compile(r"(?:^|\s)-m ((?:hrm_dist|data_pipeline|launch|tools)[\w.]*)(.*)$")
MODULE_OF_JOB = {
    "train": "hrm_dist.train",
    "build": "data_pipeline.build",
    "evaluate": "tools.evaluate",
    "sweep": "tools.sweep",
}


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_a_document_runs_exists(document: Path) -> None:
    """Commands within a sentence, too; a page may add modules in blocks that it shows whole."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    modules = re.findall(r"-m ((?:hrm_dist|data_pipeline|launch|tools|tests|docs)\b[\w.]*\w)", text)
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    assert not missing


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_heading_has_one(document: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", document.read_text(encoding="utf-8"))
    missing = [
        anchor
        for target, anchor in links
        if anchor not in anchors(document.parent / target if target else document)
    ]
    assert not missing


def test_the_tree_names_every_file_of_the_packages() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text[text.index("## Where everything is") :]
    named, folders = set[str](), list[str]()
    for line in section.split("```")[1].splitlines():
        if not line.strip():
            continue
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        if not name.endswith("/"):
            named.add("".join(folders))
    files = {
        str(path.relative_to(ROOT))
        for package in ("hrm_dist", "data_pipeline", "launch", "tools")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.name != "__init__.py" and "__pycache__" not in path.parts
    }
    assert named == files


def test_every_file_that_the_deviations_name_is_there() -> None:
    text = (ROOT / "docs" / "DEVIATIONS.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:configs|data_pipeline|hrm_dist|tests|tools)/[\w/.*]*)`", text)
    assert len(named) > 50
    assert [name for name in named if not list(ROOT.glob(name))] == []


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """The commands of ours in the code blocks of a document, by module and arguments."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(
        r"^```\w*\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.search(line.partition("  #")[0].partition(" # ")[0]):
                found.append((match[1], shlex.split(match[2])))
    return found


class Parsed(BaseException):
    """A command line that its program can read."""


def parsed(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a program reads from its arguments; it goes no further."""
    if module == "launch.submit":
        job, rest = submit._parse(arguments)
        return parsed(MODULE_OF_JOB[job.kind], rest, monkeypatch)
    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        patched.setattr(sys, "argv", [module, *arguments])
        program = importlib.import_module(module)
        if hasattr(program, "__path__"):
            program = importlib.import_module(f"{module}.__main__")
        if module == "tools.convert":
            return program._parse()
        with pytest.raises(Parsed) as raised:
            program.main()
    return raised.value.args[0]


def stopping(parse: Callable[..., object]) -> Callable[..., None]:
    """A parser's method that goes no further than what it reads."""

    def parse_and_stop(self: object, *arguments: object) -> None:
        raise Parsed(parse(self, *arguments))

    return parse_and_stop


# Those of extending.md are run by tests/e2e/test_extending.py, with the changes that they need.
SHOWN = [
    (document, *command)
    for document in DOCUMENTS
    if document.name != "extending.md"
    for command in commands(document)
]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [command[1:] for command in SHOWN],
    ids=[f"{document.name}: {module} {' '.join(arguments)}" for document, module, arguments in SHOWN],
)
def test_a_command_in_a_document_is_one(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    options = parsed(module, arguments, monkeypatch)
    if module == "hrm_dist.train":
        load_config(options.config, options.overrides)
    assert all(Path(argument).exists() for argument in arguments if argument.startswith("configs/"))


def test_the_page_of_settings_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings.page(), "run `python -m docs.settings > docs/settings.md`"


@pytest.mark.parametrize("model", [TrainConfig, ArchConfig])
def test_every_setting_says_what_it_means(model: type[TrainConfig]) -> None:
    assert [key for key, field in model.model_fields.items() if not field.description] == []


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
