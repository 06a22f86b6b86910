"""The page of a checkup: a single file that opens nothing else, in both languages."""

from pathlib import Path

from glmtune.language import Language, own_language
from glmtune.reports.checkup import Checkup
from glmtune.reports.html.forgetting import describe_forgetting
from glmtune.reports.html.page import render_page
from glmtune.reports.output import output_path
from glmtune.reports.texts import Text, in_percent, text
from glmtune.run_files import write_text

PAGE = "checkup.html"


def write_checkup(
    found: Checkup, *, output: str | Path, language: Language | None = None, force: bool = False
) -> Path:
    """Write the page of a checkup to `output`; return its path.

    `language` is the one shown first. Raises `ConfigError`, without `force`, for a file that is there, and
    `OutputError` if the page cannot be written.
    """
    path = output_path(output, Path(), PAGE, force=force)
    layers = found.layers()
    most = max((share for _, share in layers), default=0.0) or 1.0
    bars = [
        (
            text("checkup_layer", number=name) if name.isdecimal() else Text.of(name),
            in_percent(share),
            100 * share / most,
        )
        for name, share in layers
    ]
    page = render_page(
        "checkup.html.jinja",
        language or own_language(),
        title=Path(found.path).name,
        found=found,
        replies=[(text(f"checkup_q_{reply.question}"), reply) for reply in found.replies()],
        layers=bars,
        forgetting=describe_forgetting(found.forgetting),
    )
    write_text(path, page)
    return path
