"""The error of an export that does not match the trained model."""

from glmtune.errors import OutputError


def refused(problem: str) -> OutputError:
    """Return the error of an export that is thrown away."""
    return OutputError(
        f"export: {problem}", hint="nothing was kept; this should not happen: please report it with the run"
    )
