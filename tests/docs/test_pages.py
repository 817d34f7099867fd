"""What the pages say about the code is true: links, reference, methods, messages, version."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import oligovox
from oligovox import catalogue, experiment
from oligovox.experiment.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Names of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: no heading #{anchor} in {found.name}"


def test_reference_is_up_to_date(reference: ModuleType) -> None:
    for name, write in reference.PAGES.items():
        found = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert found == write(), f"docs/reference/{name} is old; run python docs/make_reference.py"


def test_every_key_has_a_meaning(reference: ModuleType) -> None:
    models = {model for _, model in reference._sections(Recipe, "")}
    for marker in ("METHOD", "NETWORK"):
        models |= {catalogue.load(marker, name).Settings for name in catalogue.entries(marker)}
    silent = [
        f"{model.__name__}.{key}"
        for model in models
        for key, field, meaning in reference.fields_of(model)
        if not meaning and not any(reference._models(field.annotation)) and not reference._choices(field.annotation)
    ]
    assert silent == []


def test_public_names_are_documented_and_can_be_called() -> None:
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name in experiment.__all__:
        assert f"## experiment.{name}\n" in text
        assert callable(getattr(experiment, name))
    assert oligovox.__all__ == ["__version__"]  # anything else needs a place in the reference first


def test_each_method_has_a_page_and_each_page_a_method() -> None:
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == set(catalogue.entries("METHOD"))


def test_method_pages_list_every_setting_with_its_default(reference: ModuleType) -> None:
    for name in catalogue.entries("METHOD"):
        page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        listed = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", page, re.MULTILINE))
        fields = catalogue.load("METHOD", name).Settings.model_fields
        expected = {key: reference._plain(f.get_default(call_default_factory=True)) for key, f in fields.items()}
        assert {key: value.replace('"', "") for key, value in expected.items()} == {
            key: listed.get(key, "not listed") for key in expected
        }


def test_quoted_messages_are_in_the_code() -> None:
    """The first column of the table of messages."""
    text = (DOCS / "how-to" / "own-data.md").read_text(encoding="utf-8")
    table = text.split("| message contains |")[1].split("\n\n")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(quoted) > 10
    assert [message for message in quoted if message not in SOURCE] == []


def test_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert oligovox.__version__ == package == newest[1]


def test_pictures_are_small() -> None:
    pictures = sorted((DOCS / "images").glob("*.png"))
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 300_000] == []
