"""The report of a migration, as `glmtune migrate` prints it."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A migrated source: findings, changes, and the next commands."""

    source: str
    """A path, of a script with the line: `train.sh:5`."""
    found: list[str] = field(default_factory=list)
    """Facts about the source, a sentence each."""
    made: Path | None = None
    """The recipe or the adapter folder; None if there is only a command to type."""
    warnings: list[str] = field(default_factory=list)
    """Reasons why a run may fail, such as memory."""
    mended: list[str] = field(default_factory=list)
    """Traps of the source that the migrated form avoids, a sentence each."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Flags left out because they change nothing, with the reason."""
    lost: dict[str, str] = field(default_factory=dict)
    """Flags and settings that have no counterpart, with the reason."""
    next: list[str] = field(default_factory=list)
    """Command lines to type next."""
