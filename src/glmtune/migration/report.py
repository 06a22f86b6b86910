"""What a migration found, made and mended, and what to type next."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One thing of the past, and what has become of it."""

    source: str
    found: list[str] = field(default_factory=list)
    """What it is, a sentence each."""
    made: Path | None = None
    """The recipe or the adapter folder; None where there is only something to type."""
    warnings: list[str] = field(default_factory=list)
    """What may stop it from running."""
    mended: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    """What is left out because it changes nothing, and why."""
    lost: dict[str, str] = field(default_factory=dict)
    """What is not carried over, and why."""
    next: list[str] = field(default_factory=list)
    """Command lines."""
