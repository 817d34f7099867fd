"""The typed API: all that the command line can do, and all that a notebook needs."""

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
from oligovox.experiment.views import views

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
