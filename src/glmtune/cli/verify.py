"""`glmtune verify`."""

from pathlib import Path

import click

from glmtune.cli.console import PATH, Lines, opening_options

NAME_WIDTH = 10
UNRECORDED = "nothing of it was recorded when this was saved (PEFT, an official script or an earlier version)"
NO_EFFECT = (
    "this precision proves nothing about the effect: the logits may be off by more than the adapter changes; "
    "least is allowed in the type and quantisation that it was saved in"
)


@click.command(short_help="Prove that an adapter or run is what was trained.")
@click.argument("path", type=PATH)
@click.option("--base", type=PATH, help="Base model of an adapter, if it has moved.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@opening_options
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
    from glmtune.places import resolve
    from glmtune.workflows.verifying import verifying

    lines, place = Lines(), resolve(path, base=base)
    missing: list[str] = []
    for check in verifying(place, template=template, dtype=dtype, device=device, quant=quant):
        if not check.is_proven:
            missing.append(check.found)
            lines.warn(f"not proven: {check.found}; {UNRECORDED}")
            continue
        lines.say(f"{check.name:<{NAME_WIDTH}} {check.found}")
        if not check.proves_effect:
            missing.append("its effect")
            lines.warn(NO_EFFECT)
    lines.say(f"{place.trained}: verified{', but for ' if missing else ''}{', '.join(missing)}")
