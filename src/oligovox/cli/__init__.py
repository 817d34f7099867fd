"""The command line: a thin skin over `experiment`. Results go to stdout (`--json`: one JSON object), everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or input (nothing is written). Nothing heavy is imported before a command runs.
"""

from oligovox.cli.verbs import app, main

__all__ = ["app", "main"]
