"""What is said of an export that is not what it should be."""

from glmtune.errors import OutputError


def refused(problem: str) -> OutputError:
    """The error of an export that is thrown away."""
    return OutputError(
        f"export: {problem}", hint="nothing was kept; this should not happen: please report it with the run"
    )
