"""The path of the page or the picture of a run, chosen without replacing a file of the user."""

from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.files import given_path


def output_path(
    output: str | Path | None, run: Path, name: str, *, is_of_many: bool = False, force: bool = False
) -> Path:
    """Return the path of a run's page or picture. Raises `ConfigError` for one that must not be replaced."""
    if output is None and not is_of_many:
        return run / name
    path = given_path(output) if output else run.parent / name
    if path.is_dir():
        raise ConfigError(f"{path}: a folder", hint=f"name a file in it: output={path / name}")
    if path.exists() and not force:
        raise ConfigError(
            f"{path}: is there and will not be overwritten",
            hint="name another: output=FILE; or replace it: force=True",
        )
    return path
