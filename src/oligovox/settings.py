"""Settings: what a user may choose, checked before anything runs.

Every method, network, plan and recipe section is a frozen `Settings`; unknown keys are refused with the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oligovox.errors import SettingsError, nearest

S = TypeVar("S", bound="Settings")
N = TypeVar("N", int, float)


class Settings(BaseModel):
    """A frozen set of choices. Give every field a default where one is sensible, and its unit in the description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def silent(default: Any, **field: Any) -> Any:
    """A field that is not written while it has its default; else as pydantic's `Field`.

    For what is added later: runs, stores and studies know each other by this text, and older ones were begun without it.
    """
    return Field(default, exclude_if=lambda value: bool(value == default), **field)


def parse(kind: type[S], given: Mapping[str, Any], where: str) -> S:
    """Build settings from plain values.

    Args:
        kind: the settings class.
        given: keys and values, as read from YAML or the command line.
        where: how to call this place in a message, e.g. "recipes/demo.yaml: pretrain".

    Raises:
        SettingsError: the first unknown key (with the nearest valid one) or wrong value, in one line.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise SettingsError(_explain(kind, error, where)) from None


def ascending(name: str, values: tuple[float, float], least: float, most: float) -> None:
    """Check a range (lowest, highest) in a validator.

    Raises:
        ValueError: it descends, or leaves [least, most]; pydantic and `parse` make one line of it.
    """
    low, high = values
    if not least <= low <= high <= most:
        raise ValueError(f"{name} = ({low}, {high}); expected {least} <= lowest <= highest <= {most}")


def ordered(limits: tuple[N, N]) -> tuple[N, N]:
    """The limits themselves, for `AfterValidator`.

    Raises:
        ValueError: the larger one comes first.
    """
    if limits[0] > limits[1]:
        raise ValueError("expected the smaller limit first")
    return limits


def _explain(kind: type[Settings], error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    said = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    of_section = first["type"] == "value_error" and isinstance(first["input"], Mapping)
    if of_section or not first["loc"]:
        return f"{'.'.join([where, *map(str, first['loc'])])}: {said}"
    *parents, last = (str(part) for part in first["loc"])
    place = ".".join([where, *parents])
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key '{last}'; {nearest(last, _keys(kind, parents))}"
    if first["type"] == "missing":
        return f"{place}: key '{last}' is missing"
    return f"{place}: {last} = {first['input']!r}: {said}"


def _keys(kind: type[Settings], parents: list[str]) -> list[str]:
    """Valid keys at a nested place; falls back to the outer class where a part is a list index or a mapping key."""
    model: type[BaseModel] = kind
    for part in parents:
        field = model.model_fields.get(part)
        for candidate in _models(field.annotation) if field else ():
            model = candidate
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]
