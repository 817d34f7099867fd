"""The typed API: all that the command line can do, and all that a notebook needs."""

from oligovox.experiment.annotation import annotate
from oligovox.experiment.budget_run import budget
from oligovox.experiment.evaluation import evaluate
from oligovox.experiment.study import demo, run, run_recipe
from oligovox.experiment.subsets import evaluate_subsets
from oligovox.experiment.verbs import finetune, methods, predict, prepare, pretrain, report, simulate
from oligovox.experiment.views import views

__all__ = [
    "annotate",
    "budget",
    "demo",
    "evaluate",
    "evaluate_subsets",
    "finetune",
    "methods",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "run",
    "run_recipe",
    "simulate",
    "views",
]
