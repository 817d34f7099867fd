"""`python -m oligovox`, which is what `torchrun -m oligovox …` starts on every rank."""

from oligovox.cli import main

main()
