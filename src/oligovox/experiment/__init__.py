"""The typed API: all that the command line can do, and all that a notebook needs."""

from oligovox.experiment.annotation import annotate
from oligovox.experiment.budget_run import budget
from oligovox.experiment.classification import classify_train
from oligovox.experiment.classification_patients import classify_predict
from oligovox.experiment.classification_scores import classify_evaluate
from oligovox.experiment.evaluation import evaluate
from oligovox.experiment.folders import look_at, series, write_cohort
from oligovox.experiment.lesion_cohorts import classify_extract
from oligovox.experiment.study import demo, run, run_recipe
from oligovox.experiment.subsets import evaluate_subsets
from oligovox.experiment.verbs import finetune, methods, predict, prepare, pretrain, report, simulate
from oligovox.experiment.views import views

__all__ = [
    "annotate",
    "budget",
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
    "predict",
    "prepare",
    "pretrain",
    "report",
    "run",
    "run_recipe",
    "series",
    "simulate",
    "views",
    "write_cohort",
]
