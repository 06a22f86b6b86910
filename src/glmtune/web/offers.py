"""The models, runs and adapters that the page offers to talk to."""

from pathlib import Path

from glmtune.locations import BUNDLED
from glmtune.reports.listing import Entry, summarise_runs


def runs_in(folder: Path) -> list[Entry]:
    """Return the runs in a folder, the newest first; none if it is not there yet."""
    return summarise_runs(folder) if folder.is_dir() else []


def offered(path: Path | None, runs: Path, *, is_base_first: bool = False) -> list[tuple[str, str]]:
    """Return names and paths to choose from: what the page was opened with, the runs, the bundled model.

    `is_base_first`: the bundled model before the runs.
    """
    found = {str(path): str(path)} if path else {}
    bundled = {name: name for name in BUNDLED}
    found |= bundled if is_base_first else {}
    for entry in runs_in(runs):
        if entry.state != "broken" and entry.size_bytes is not None:
            found.setdefault(str(entry.path), f"{entry.path} ({entry.base}, {entry.method})")
    return [(name, path) for path, name in {**found, **bundled}.items()]
