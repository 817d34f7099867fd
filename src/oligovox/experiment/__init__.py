"""The typed API: all that the command line can do, and all that a notebook needs."""

from oligovox.experiment.study import demo, run, run_recipe
from oligovox.experiment.verbs import evaluate, finetune, methods, predict, prepare, pretrain, report, simulate

__all__ = [
    "demo",
    "evaluate",
    "finetune",
    "methods",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "run",
    "run_recipe",
    "simulate",
]
