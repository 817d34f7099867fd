"""The typed API: all that the command line can do, and all that a notebook needs.

Each name is imported when it is first asked for, so that who looks at a folder does not wait for what trains a network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oligovox.experiment.annotation import annotate
    from oligovox.experiment.budget_run import budget
    from oligovox.experiment.checking import check_data
    from oligovox.experiment.classification import classify_train
    from oligovox.experiment.classification_patients import classify_predict
    from oligovox.experiment.classification_scores import classify_evaluate
    from oligovox.experiment.evaluation import evaluate
    from oligovox.experiment.folders import look_at, series, write_cohort
    from oligovox.experiment.front_door import Asked, run_folder
    from oligovox.experiment.lesion_cohorts import classify_extract
    from oligovox.experiment.planning import plan
    from oligovox.experiment.readying import ready, ready_back
    from oligovox.experiment.study import demo, run, run_recipe
    from oligovox.experiment.subsets import evaluate_subsets
    from oligovox.experiment.verbs import finetune, methods, predict, prepare, pretrain, report, simulate
    from oligovox.experiment.viewing import views

_HOMES = {
    "annotation": ("annotate",),
    "budget_run": ("budget",),
    "checking": ("check_data",),
    "classification": ("classify_train",),
    "classification_patients": ("classify_predict",),
    "classification_scores": ("classify_evaluate",),
    "evaluation": ("evaluate",),
    "folders": (
        "look_at",
        "series",
        "write_cohort",
    ),
    "front_door": (
        "Asked",
        "run_folder",
    ),
    "lesion_cohorts": ("classify_extract",),
    "planning": ("plan",),
    "readying": (
        "ready",
        "ready_back",
    ),
    "study": (
        "demo",
        "run",
        "run_recipe",
    ),
    "subsets": ("evaluate_subsets",),
    "verbs": (
        "finetune",
        "methods",
        "predict",
        "prepare",
        "pretrain",
        "report",
        "simulate",
    ),
    "viewing": ("views",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Asked",
    "annotate",
    "budget",
    "check_data",
    "classify_evaluate",
    "classify_extract",
    "classify_predict",
    "classify_train",
    "demo",
    "evaluate",
    "evaluate_subsets",
    "finetune",
    "look_at",
    "methods",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "ready",
    "ready_back",
    "report",
    "run",
    "run_folder",
    "run_recipe",
    "series",
    "simulate",
    "views",
    "write_cohort",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return found
