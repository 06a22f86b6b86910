"""The models, runs and adapters that the page offers to talk to."""

from pathlib import Path

from glmtune.files import is_there
from glmtune.locations import BUNDLED
from glmtune.reports.listing import Entry, summarise_runs
from glmtune.run_files import follow


def runs_in(folder: Path) -> list[Entry]:
    """Return the runs in a folder, the newest first; none if it is not there yet."""
    return summarise_runs(folder) if folder.is_dir() else []


def offered(path: Path | None, runs: Path, *, is_base_first: bool = False) -> list[tuple[str, str]]:
    """Return names and paths to choose from: what the page was opened with, the runs, the bundled model.

    A run stands for its best checkpoint; its last one follows where that is another.
    `is_base_first`: the bundled model before the runs.
    """
    found = {str(path): str(path)} if path else {}
    bundled = {name: name for name in BUNDLED}
    found |= bundled if is_base_first else {}
    for entry in runs_in(runs):
        if entry.state != "broken" and entry.size_bytes is not None:
            told = f"({entry.base}, {entry.method})"
            found.setdefault(str(entry.path), f"{entry.path} {told}")
            last = entry.path / "last"
            if is_there(last) and follow(last) != follow(entry.path / "best"):
                found.setdefault(str(last), f"{last} {told}")
    return [(name, path) for path, name in {**found, **bundled}.items()]
