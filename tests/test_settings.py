"""Settings: checked, frozen, and mistakes explained in one line."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from oligovox.errors import SettingsError
from oligovox.settings import Settings, parse, silent


class _Inner(Settings):
    momentum: float = Field(0.9, ge=0, lt=1)


class _Outer(Settings):
    steps: int
    inner: _Inner = _Inner()
    many: dict[str, _Inner] = Field(default_factory=dict)
    maybe: _Inner | None = None


class _Later(Settings):
    steps: int = 3
    share: float = silent(0.5, ge=0, description="came later")


def test_a_silent_field_is_written_only_where_it_is_not_its_default() -> None:
    assert _Later().model_dump() == _Later(share=0.5).model_dump(mode="json") == {"steps": 3}
    chosen = _Later(share=0.25)
    assert chosen.model_dump(mode="json") == {"steps": 3, "share": 0.25}
    assert parse(_Later, chosen.model_dump(), "here") == chosen
    assert _Later.model_fields["share"].description == "came later"
    with pytest.raises(SettingsError, match="here: share = -1"):
        parse(_Later, {"share": -1}, "here")


def test_plain_values_become_settings() -> None:
    settings = parse(_Outer, {"steps": 3, "inner": {"momentum": 0.5}}, "here")
    assert settings == _Outer(steps=3, inner=_Inner(momentum=0.5))
    assert parse(_Outer, settings.model_dump(), "here") == settings
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 3, "step": 1}, "r.yaml: unknown key 'step'; did you mean 'steps'?"),
        ({"steps": 3, "inner": {"momentun": 1}}, "r.yaml.inner: unknown key 'momentun'; did you mean 'momentum'?"),
        ({"steps": 3, "maybe": {"momentun": 1}}, "r.yaml.maybe: unknown key 'momentun'; did you mean 'momentum'?"),
        (
            {"steps": 3, "many": {"a": {"momentun": 1}}},
            "r.yaml.many.a: unknown key 'momentun'; did you mean 'momentum'?",
        ),
        ({"steps": 3, "zzz": 1}, "r.yaml: unknown key 'zzz'; known are: inner, many, maybe, steps"),
        ({}, "r.yaml: key 'steps' is missing"),
        ({"steps": "x"}, "r.yaml: steps = 'x': Input should be a valid integer"),
        ({"steps": 1, "inner": {"momentum": 1.0}}, "r.yaml.inner: momentum = 1.0: Input should be less than 1"),
        (
            {"steps": 1, "inner": {"momentum": float("nan")}},
            "r.yaml.inner: momentum = nan: Input should be a finite number",
        ),
    ],
)
def test_mistakes_are_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(_Outer, given, "r.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
