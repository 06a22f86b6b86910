"""`glmtune checkup`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import MODEL, PATH, fail_on, loading_options, print_json

if TYPE_CHECKING:
    from glmtune.language import Language

QUESTION_WIDTH = 26


@click.command(short_help="Say on one page what anyone's adapter or tuned model does and has forgotten.")
@click.argument("path", type=MODEL)
@click.option("--base", type=PATH, help="Its base: of a merged model, or where an adapter's has moved.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Write it as a web page of one file too.",
)
@click.option(
    "--lang", type=click.Choice(["en", "zh"]), help="Language: en, or zh for 中文; else that of the locale."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON object.")
@click.option("--prompts", type=int, help="Number of general prompts; default 32.")
@click.option("--fail-on-forgetting", is_flag=True, help="Exit code 3 if the verdict is `forgot`.")
@loading_options
def checkup(
    path: Path,
    base: Path | None,
    template: str | None,
    output: Path | None,
    lang: "Language | None",
    force: bool,
    as_json: bool,
    prompts: int | None,
    fail_on_forgetting: bool,
    dtype: str,
    quant: str | None,
    device: str,
) -> None:
    """Look at PATH, a run, an adapter or a tuned model, of glmtune, PEFT or any other tool, beside its base.

    Does it do anything, does it stop, do its training rows leak into other answers, what did it forget, which
    chat format and system text does it need, and how is it opened? Both models answer general prompts. What
    changes nothing, or does not fit its base, is an error with exit code 2.

    \b
      glmtune checkup runs/chatglm3-6b-lora
      glmtune checkup my-adapter --base /models/chatglm3-6b -o checkup.html
      glmtune checkup merged --base /models/chatglm3-6b --json
    """
    from glmtune.reports.output import output_path
    from glmtune.reports.texts import text
    from glmtune.workflows.show import Lines, Shown

    if output:
        output_path(output, path, "checkup.html", force=force)  # before minutes of work, not after
    from glmtune.reports.html.checkup import write_checkup
    from glmtune.workflows import public

    lines = Lines(on_stderr=as_json)
    with lines.bar("measuring"):
        found = public.checkup(
            path,
            base=base,
            template=template,
            prompts=prompts,
            dtype=dtype,
            quant=quant,
            device=device,
            on_event=Shown(lines),
        )
    if as_json:
        print_json(found.facts())
    else:
        lines.say(f"{found.path}: {found.kind}, on {found.base}")
        for reply in found.replies():
            lines.say(f"{text(f'checkup_q_{reply.question}').en:<{QUESTION_WIDTH}} {reply.words.en}")
        if found.unproven:
            lines.say(f"{text('checkup_unproven').en} {'; '.join(found.unproven)}")
    if output:
        page = write_checkup(found, output=output, language=lang, force=force)
        lines.say(f"page: {page}")
    if fail_on_forgetting:
        fail_on(found.forgetting["verdict"])
