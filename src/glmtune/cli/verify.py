"""`glmtune verify`."""

from pathlib import Path

import click

from glmtune.cli.console import MODEL, PATH, loading_options


@click.command(short_help="Prove that an adapter or run is what was trained.")
@click.argument("path", type=MODEL)
@click.option("--base", type=PATH, help="Base model of an adapter, if it has moved.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@loading_options
def verify(
    path: Path, base: Path | None, template: str | None, dtype: str, quant: str | None, device: str
) -> None:
    """Prove that PATH, a run, checkpoint or adapter folder, does what it did when it was saved.

    Its tokenizer, base, size, weights and answers to a built-in probe are compared with what its card
    records. The same is done at every load. Exit code 2 at the first thing that is not so. Where the
    precision asked for is too coarse to show the effect, a warning says so.

    \b
      glmtune verify runs/chatglm3-6b-lora
      glmtune verify my-adapter --base /models/chatglm3-6b
    """
    from glmtune.workflows.events import drain
    from glmtune.workflows.show import Lines, Shown
    from glmtune.workflows.verifying import proving_trained

    events = proving_trained(path, base=base, template=template, dtype=dtype, device=device, quant=quant)
    drain(events, Shown(Lines()))
