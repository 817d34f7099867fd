import pytest

from oligovox.errors import SettingsError
from oligovox.simulate.recipe import AbdomenRecipe, BrainRecipe, make_recipe, merged, presets

NAMES = ("chaos", "glioma-2023", "glioma-2024", "ms-3t", "ms-7t", "ms-multisite", "rim")


def test_the_presets_are_those_promised_and_all_are_recipes():
    assert presets() == NAMES
    for name in presets():
        assert isinstance(make_recipe(name), AbdomenRecipe if name == "chaos" else BrainRecipe)
    assert make_recipe("ms-7t").fields == (7.0,)
    assert make_recipe("rim").rims is not None
    assert make_recipe("glioma-2024").lesions is None


def test_changes_are_laid_over_a_preset_at_every_depth():
    recipe = make_recipe("ms-multisite", {"acquisition": {"thick": 0.0}, "spacing": 2})
    assert recipe.spacing == 2
    assert recipe.acquisition.sites == 8
    assert make_recipe("ms-3t", make_recipe("ms-3t").model_dump(mode="json")) == make_recipe("ms-3t")
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("ms-3", {}, "unknown cohort 'ms-3'; did you mean 'ms-3t'?"),
        ("ms-3t", {"spacin": 1}, "did you mean 'spacing'?"),
        ("ms-3t", {"lesions": {"lod_ml": [1, 2]}}, "did you mean 'load_ml'?"),
        ("ms-3t", {"fields": [4.0]}, "1.5"),
        ("ms-3t", {"age": [50, 20]}, "age = (50.0, 20.0)"),
        ("ms-3t", {"sequences": ["T1w", "T1w"]}, "has a name twice"),
        ("ms-3t", {"glioma": {}}, "set one of lesions, glioma, and the other to null"),
        ("glioma-2023", {"rims": {}}, "rims needs lesions"),
        ("glioma-2023", {"visits": 2}, "second visit"),
        ("rim", {"visits": 2}, "rims are graded at one visit"),
        ("ms-3t", {"protocols": {"T2star": {"te": 1}}}, "protocols has T2star"),
        ("ms-3t", {"protocols": {"FLAIR": {"tee": 90}}}, "did you mean 'te'?"),
        ("ms-3t", {"protocols": {"T1w": {"ti": 100}}}, "protocols.T1w"),
        ("chaos", {"sequences": ["FLAIR"]}, "T1in"),
        ("ms-3t", {"body": "knee"}, "expected one of brain, abdomen"),
    ],
)
def test_impossible_recipes_are_refused_in_one_line(preset, changes, message):
    with pytest.raises(SettingsError) as error:
        make_recipe(preset, changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
