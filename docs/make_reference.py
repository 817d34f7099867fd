"""Write docs/reference/{recipe,study,classify,cli,python,tissues,gallery}.md from the code. A test compares them with it.

Run it after a setting, an option or a docstring has changed: `python docs/make_reference.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from oligovox import catalogue, cli, experiment
from oligovox.engine.fit import Training
from oligovox.experiment.budget_plan import Study, StudyArm, StudySplit, Tuning
from oligovox.experiment.classification_recipe import Classify
from oligovox.experiment.ground_file import GroundChoice, GroundFile
from oligovox.experiment.radiomics_forest import ForestSettings
from oligovox.experiment.recipe import NetworkChoice, Recipe
from oligovox.experiment.threshold import ThresholdSettings
from oligovox.prepare.lesion_store import LesionPlan
from oligovox.sample.augment import Augmentation
from oligovox.simulate.physics.tissues import FIELDS, SOURCES, TABLE

HOME = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/make_reference.py from the code: do not edit. -->"


def recipe_page() -> str:
    """Every key of a recipe, then the settings of every network and method."""
    parts = [
        "# Recipe: every key",
        _NOTE,
        "A recipe is one YAML file. `oligovox run RECIPE.yaml --out RUN` does all of it. A key that is not listed here is refused, and the "
        "message names the nearest one that is. `--set section.key=value` changes one key on the command line. The resolved recipe, with every "
        "default spelled out, is written to `RUN/recipe.yaml`.",
        "Lengths are in mm and mL where that is said, otherwise in voxels of the prepared grid. Triples are x, y, z (right, anterior, superior).",
    ]
    parts += _keys(Recipe, "Top of the file")
    for marker, where in (("NETWORK", "network.settings"), ("METHOD", "pretrain.settings, finetune.settings")):
        parts.append(f"## {where}")
        for name, entry in catalogue.entries(marker).items():  # type: ignore[arg-type]
            model = catalogue.load(marker, name).Settings  # type: ignore[arg-type]
            parts += [f"### {name}", f"{entry.summary} Source: {entry.source}", _table(model)]
    return _page(parts)


def study_page() -> str:
    """Every key of a label-budget study that a recipe does not have; what it shares is on the recipe's page."""
    parts = [
        "# Label-budget study: every key",
        _NOTE,
        "A study is one YAML file. `oligovox budget STUDY.yaml --out STUDY` does all of it ([how](../how-to/budget.md)). A key that is not listed is "
        "refused, and the message names the nearest one that is. `cohorts`, `prepare`, `network`, `pretrain`, `finetune` and `predict` have the keys "
        "[of a recipe](recipe.md); settings of pretexts are there as well.",
    ]
    own = {Study: "Top of the file", StudySplit: "split", Tuning: "tune", StudyArm: "arms.NAME"}
    own |= {ThresholdSettings: "settings of classical: flair_threshold"}
    own |= {GroundChoice: "ground", GroundFile: "The file of a ground"}
    for model, place in own.items():
        parts += [f"## {place}", _summary(model), _table(model)]
    return _page(parts)


def classify_page() -> str:
    """Every key of `classify extract` and of `classify train`; what a training has in common with others is on the recipe's page."""
    parts = [
        "# Classification of lesions: every key",
        _NOTE,
        "`oligovox classify extract --set KEY=VALUE` and `oligovox classify train --set KEY=VALUE` change one key "
        "([how](../how-to/classify-lesions.md)). A key that is not listed is refused, and the message names the nearest one that is. `network.settings`, "
        "`settings` (of the method) and the keys of `training` and `augmentation` are [those of a recipe](recipe.md); here every probability of "
        "`augmentation` is 0 unless it is given.",
    ]
    parts += _keys(LesionPlan, "extract")
    parts += _keys(Classify, "train", without=(Training, NetworkChoice, Augmentation))
    return _page(
        [*parts, "## settings of `--method radiomics_forest`", _summary(ForestSettings), _table(ForestSettings)]
    )


def _keys(top: type[BaseModel], title: str, without: tuple[type[BaseModel], ...] = ()) -> list[str]:
    """A section for each settings class below `top`, under all places it stands at."""
    places: dict[type[BaseModel], list[str]] = {}
    for place, model in _sections(top, ""):
        if model not in without:
            places.setdefault(model, []).append(place or title)
    return [
        part for model, found in places.items() for part in (f"## {', '.join(found)}", _summary(model), _table(model))
    ]


def cli_page() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(cli.app)
    parts = [
        "# Command line",
        _NOTE,
        "Results go to stdout, everything else to stderr. With `--json`, stdout is one JSON object, also when a command fails. Exit codes: 0 done; "
        "1 started and failed; 2 wrong usage or input, and then nothing was written. `oligovox COMMAND --help` says the same as this page.",
    ]
    for name, command in _commands(group):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        needed = [f"{option.opts[0]} {_value_name(option)}" for option in options if option.required]
        usage = " ".join(
            ["oligovox", name, *map(_argument, arguments), *needed, "[options]" if options else ""]
        ).strip()
        rows = [(_argument(p), "", getattr(p, "help", "") or "") for p in arguments]
        rows += [(_flags(p), _default(p), getattr(p, "help", "") or "") for p in options]
        parts += [f"## {name}", f"`{usage}`", command.help or "", _rows(("", "default", "meaning"), rows)]
    return _page(parts)


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it; those of a group one by one."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def python_page() -> str:
    """Every public function with its signature and docstring."""
    parts = [
        "# Python",
        _NOTE,
        "`from oligovox import experiment` gives the verbs of the command line, with the same names. Folders and files are `pathlib.Path`.",
    ]
    for name in experiment.__all__:
        function = getattr(experiment, name)
        parts += [
            f"## experiment.{name}",
            _fence(f"{name}{_signature(function)}"),
            _fence(inspect.getdoc(function) or ""),
        ]
    return _page(parts)


def tissues_page() -> str:
    """Every value of the simulated tissues with its source."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(row.source for row in TABLE), 1)}
    parts = [
        "# Simulated tissues",
        _NOTE,
        "What the simulator takes each tissue of a typical person of 40 years to be like. People vary around it, and the iron of the deep nuclei "
        'grows with age. In parentheses, the number of the source below. A source says what was read of it; a value that is "chosen" is ours. '
        "A quantity without a line is 0.",
        _rows(("", "meaning", "unit"), [(f"`{name}`", *rest) for name, *rest in _QUANTITIES]),
    ]
    cells = {row[:3]: f"{row.value:g} ({numbers[row.source]})" for row in TABLE}
    for tissue in dict.fromkeys(row.tissue for row in TABLE):
        found = [name for name, *_ in _QUANTITIES if (tissue, name, FIELDS[0]) in cells]
        rows = [(f"`{name}`", *(cells[tissue, name, strength] for strength in FIELDS)) for name in found]
        parts += [f"## {tissue}", _rows(("", *(f"{strength:g} T" for strength in FIELDS)), rows)]
    return _page([*parts, "## Sources", "\n".join(f"{number}. {SOURCES[key]}" for key, number in numbers.items())])


_QUANTITIES = (
    ("pd", "proton density relative to water", ""),
    ("t1", "longitudinal relaxation time", "ms"),
    ("t2", "transverse relaxation time", "ms"),
    ("t2s", "T2*", "ms"),
    ("chi", "volume susceptibility relative to CSF", "ppb"),
    ("uptake", "gadolinium after a standard dose of 0.1 mmol/kg", "mmol/L"),
    ("fat", "share of the protons that are fat", ""),
)


def gallery_page() -> str:
    """What each pretext shows its network."""
    parts = [
        "# The pretexts, side by side",
        _NOTE,
        "What each pretext shows its network and asks of it, on one 128 mm patch of a simulated patient (2 mm, middle slice, default settings). The same on your own "
        "exams: `oligovox methods NAME --views STORE --out views.png`. Pictures: `python docs/make_images.py views`.",
    ]
    for name, entry in catalogue.entries("METHOD").items():
        if entry.room == "pretext":
            does = entry.summary.partition(": ")[2]
            parts += [
                f"## [{name}](../methods/{name}.md)",
                f"{does[:1].upper()}{does[1:]}",
                f"![{name}](../images/views_{name}.png)",
            ]
    return _page(parts)


PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe_page,
    "study.md": study_page,
    "classify.md": classify_page,
    "cli.md": cli_page,
    "python.md": python_page,
    "tissues.md": tissues_page,
    "gallery.md": gallery_page,
}


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, str]]:
    """(key, field, meaning) of a settings class; the meaning is its description, or the comment at the end of its line."""
    sources = "\n".join(inspect.getsource(kind) for kind in model.__mro__ if kind.__module__.startswith("oligovox"))
    for key, field in model.model_fields.items():
        comment = re.search(rf"^    {key}: .*?  # (?!noqa|type:)(.+)$", sources, re.MULTILINE)
        if comment is None:  # a field over several lines has its comment behind the last bracket
            comment = re.search(
                rf"^    {key}: [^\n]*[\[(]\n(?:        .*\n)+    [\])][^\n#]*# (.+)$", sources, re.MULTILINE
            )
        yield key, field, field.description or (comment[1] if comment else "")


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for key, field in model.model_fields.items():
        for inner, many in _models(field.annotation):
            name = "".join([place and f"{place}.", key, ".NAME" if many else ""])
            yield from _sections(inner, name)


def _models(annotation: Any, many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation, many
        return
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part, many or getattr(annotation, "__origin__", None) is dict)


def _table(model: type[BaseModel]) -> str:
    rows = []
    for key, field, meaning in fields_of(model):
        if any(_models(field.annotation)):
            meaning = f"{meaning}; keys below".removeprefix("; ")
            default = "required" if field.is_required() else ("none" if field.get_default() is None else "")
        else:
            default = "required" if field.is_required() else _plain(field.get_default(call_default_factory=True))
        if (choices := _choices(field.annotation)) and "one of" not in meaning:
            meaning = f"{meaning}; one of {', '.join(choices)}".removeprefix("; ")
        rows.append((f"`{key}`", default, meaning))
    return _rows(("key", "default", "meaning"), rows)


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, also inside tuples and unions."""
    if str(getattr(annotation, "__origin__", "")) == "typing.Literal":
        return [_plain(value) for value in annotation.__args__]
    return list(dict.fromkeys(c for part in getattr(annotation, "__args__", ()) for c in _choices(part)))


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "none" if value is None else '""'
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return json.dumps(value) if not isinstance(value, BaseModel) else ""


def _summary(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _argument(argument: Any) -> str:
    name = (argument.name or "").upper()
    return f"{name}…" if argument.nargs == -1 else name


def _value_name(option: Any) -> str:
    return (option.name or "").upper()


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in option.opts)


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    return "" if value is None or value is False or value in ("", [], ()) else str(value)


def _signature(function: Callable[..., Any]) -> str:
    text = str(inspect.signature(function)).replace("'", "")
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)
    return text.replace("pathlib._local.", "").replace("pathlib.", "")


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _fence(text: str) -> str:
    return f"```text\n{text}\n```"


def _page(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    for page, write in PAGES.items():
        (HOME / page).write_text(write(), encoding="utf-8")
