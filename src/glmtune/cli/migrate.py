"""`glmtune migrate`."""

from pathlib import Path

import click

from glmtune.cli.console import PATH


@click.command(short_help="Bring old scripts, adapters and checkpoints here.")
@click.argument("source", type=PATH)
@click.option("--output", type=PATH, help="New folder; for one recipe also a new .yaml file.")
@click.option(
    "--base", help="The model that the weights go on, or that a recipe trains: folder or hub's name."
)
@click.option("--template", help="Chat format of the base, where its folder does not tell it.")
def migrate(source: Path, output: Path | None, base: str | None, template: str | None) -> None:
    """Tell what SOURCE is and write it as something that works here. Nothing of it is run or overwritten.

    \b
    A script of ptuning/, a configuration of finetune_demo/configs/, or a folder of them -> recipes:
      glmtune migrate ptuning/train.sh --output recipes/mine.yaml
      glmtune migrate finetune_demo/configs/lora.yaml --base /models/chatglm3-6b --output recipes/mine

    \b
    A PEFT LoRA folder, or a P-Tuning checkpoint (the prefix, alone or with the whole model) -> an adapter:
      glmtune migrate old/lora --base /models/chatglm3-6b --output adapters/lora
      glmtune migrate output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000 --base /models/chatglm-6b
                      --output adapters/adgen
    """
    from glmtune.workflows.events import drain
    from glmtune.workflows.public import migrating
    from glmtune.workflows.show import Lines, Shown

    drain(migrating(source, output, base=base, template=template), Shown(Lines()))
