"""`glmtune export`."""

from pathlib import Path

import click

from glmtune.cli.console import MODEL, PATH, strength_option

KINDS = ("merged", "hf", "official-ptuning", "lora-from-adalora", "int8", "int4")


@click.command(short_help="Write a tuned model as other programs take it.")
@click.argument("path", type=MODEL)
@click.option("--to", required=True, metavar="KIND", help=f"One of {', '.join(KINDS)}.")
@click.option("--output", type=PATH, help="A new folder; without it, exports/NAME-KIND.")
@strength_option()
@click.option("--base", type=PATH, help="Un-quantised base model, if it has moved.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@click.option("--dtype", help="bf16, fp16 or fp32; without it, what the base's files have.")
@click.option("--max-shard-size", default="2GB", show_default=True, help="Largest file of weights.")
@click.option("--data", type=PATH, help="int8, int4: rows to measure the loss of quality on.")
@click.option(
    "--max-rows", type=int, default=200, show_default=True, help="int8, int4: so many rows at most."
)
@click.option(
    "--score-rows", type=int, default=0, show_default=True, help="int8, int4: answer and score so many."
)
@click.option("--device", default="auto", show_default=True, help="int8, int4: where quality is measured.")
def export(
    path: Path,
    to: str,
    output: Path | None,
    strength: float,
    base: Path | None,
    template: str | None,
    dtype: str | None,
    max_shard_size: str,
    data: Path | None,
    max_rows: int,
    score_rows: int,
    device: str,
) -> None:
    """Write PATH, a run, adapter or model, as KIND says, to a new folder: exports/NAME-KIND, or --output.

    \b
      merged             a model folder like the base's: weights merged, all other files the base's own
      hf                 transformers' own layout, without remote code (ChatGLM2, ChatGLM3, GLM-4)
      official-ptuning   a prefix as the official ptuning scripts save and read it
      lora-from-adalora  AdaLoRA as plain LoRA in PEFT's layout, for servers that know only that
      int8, int4         merged and quantised in the official packing, with the measured loss of quality

    The result is opened in a fresh process and compared with base + adapter; if they differ, nothing is kept.

    \b
      glmtune export runs/chatglm3-6b-lora --to merged
      glmtune export runs/chatglm3-6b-lora --to int4 --data test.json
      glmtune export runs/chatglm3-6b-lora --to merged --strength 0.7
    """
    from glmtune.workflows.early import export_folder
    from glmtune.workflows.events import drain
    from glmtune.workflows.exporting import Order, exporting
    from glmtune.workflows.show import Lines, Shown

    order = Order(
        path=path,
        to=to,
        output=output or export_folder(path, to, strength),
        strength=strength,
        base=base,
        template=template,
        dtype=dtype,
        max_shard_size=max_shard_size,
        data=data,
        max_rows=max_rows,
        score_rows=score_rows,
        device=device,
    )
    drain(exporting(order), Shown(Lines()))
