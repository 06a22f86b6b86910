"""`glmtune doctor`."""

import sys
from pathlib import Path

import click

from glmtune.cli.console import MODEL, loading_options, print_json
from glmtune.cli.hints import name_options


@click.command(short_help="Look at this machine and try glmtune on it; and on a model.")
@click.argument("path", type=MODEL, required=False)
@click.option("--template", help="Chat format, where the folder does not tell it.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON array.")
@loading_options
def doctor(
    path: Path | None, template: str | None, as_json: bool, dtype: str, quant: str | None, device: str
) -> None:
    """Say what this machine has and lacks, and try in some seconds that glmtune works on it.

    The bundled glm-tiny is trained, proven and asked; nothing is downloaded or left behind. With PATH, a
    model's folder, that model is opened, asked and trained one step too. Paste the report into an issue: it
    names no folder above the model's, and your home folder is `~`. Exit code 1 if something failed.

    \b
      glmtune doctor
      glmtune doctor /models/chatglm3-6b --quant int4
    """
    from dataclasses import asdict, replace

    from glmtune.workflows.events import Event, Note, drain
    from glmtune.workflows.examining import examining
    from glmtune.workflows.show import Lines, Shown

    report = examining(path, template=template, dtype=dtype, quant=quant, device=device)
    if as_json:
        findings = drain(report)
    else:
        lines, command = Lines(), click.get_current_context().command
        shown = Shown(lines)

        def show(event: Event) -> None:
            if isinstance(event, Note):  # a cure names a setting, which may be an option of this command
                event = replace(event, text=name_options(event.text, command))
            shown(event)

        with lines.bar("doctor"):
            findings = drain(report, show)
    if as_json:
        print_json([asdict(found) for found in findings])
    if any(found.has_failed for found in findings):
        sys.exit(1)
