"""`python -m glmtune` and `torchrun -m glmtune`."""

from glmtune.cli import main

main()
