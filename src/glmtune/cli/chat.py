"""`glmtune chat`."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import MODEL, PATH, opening_options

if TYPE_CHECKING:
    from glmtune.generate import Chat


@click.command(short_help="Talk to a model in the terminal.")
@click.argument("path", type=MODEL)
@click.option(
    "--rounds", type=click.Choice(["1", "2"]), help="1: single-turn, 2: multi-turn; asked if not given."
)
@click.option("--temperature", type=float, help="Below 1 sharpens, 0: no sampling; default 0.8.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens of this total; default 0.8.")
@click.option("--top-k", type=int, help="Draw from so many likeliest tokens; default 0: no limit.")
@click.option("--repetition-penalty", type=float, help="Above 1 repeats less; default 1.")
@click.option("--max-new-tokens", type=int, help="Longest answer in tokens; default 512.")
@click.option("--seed", type=int, help="Makes the answers repeatable.")
@click.option("--system", help="System message; without it, the one the run was tuned with.")
@click.option("--base", type=PATH, help="Base model of an adapter, if it has moved.")
@click.option("--revision", help="Branch, tag or commit of a model on a hub.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@opening_options
@click.option(
    "--compute",
    type=click.Choice(["exact", "fast", "auto"]),
    default="exact",
    show_default=True,
    help="fast: weights and activations in int8, on an x86 CPU; answers may differ. auto: that, if it is "
    "faster here.",
)
@click.option(
    "--compile",
    "compile_step",
    is_flag=True,
    help="Each token quicker after the first: on CUDA a captured graph; on a CPU compiled C++, which takes a "
    "minute and pays for small models in bf16 or fp32.",
)
def chat(
    path: Path,
    rounds: str | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
    max_new_tokens: int | None,
    seed: int | None,
    system: str | None,
    base: Path | None,
    revision: str | None,
    template: str | None,
    dtype: str,
    quant: str | None,
    device: str,
    compute: str,
    compile_step: bool,
) -> None:
    """Talk to a model, run or adapter folder.

    \b
      glmtune chat runs/chatglm3-6b-lora
      glmtune chat /models/chatglm3-6b --temperature 0
    """
    from glmtune.generate import Chat, choose_compute
    from glmtune.load import open_place, open_tokenizer
    from glmtune.places import resolve
    from glmtune.templates import find

    place = resolve(path, base=base, revision=revision)
    tokenizer = open_tokenizer(place, template=template)
    model = open_place(place, template=template, dtype=dtype, device=device, quant=quant).eval()
    model = choose_compute(model, compute)  # in its place: the exact weights are let go
    card = place.card
    named = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    conversation = Chat(
        model,
        tokenizer,
        system=system if system is not None else card.system if card else None,
        source_prefix=card.source_prefix if card else "",
        compile_step=compile_step,
        **{name: value for name, value in named.items() if value is not None},
    )
    click.echo("model load done...")
    _talk(conversation, find(tokenizer.template).title, rounds)


def _talk(conversation: "Chat", name: str, rounds: str | None) -> None:
    """Source of the lines: HarderThenHarder/transformers_tasks, LLM/chatglm_finetune; THUDM's cli_demo.py."""
    click.echo(
        f"欢迎使用 {name} 人工智能助手！输入内容即可进行对话。"
        "输入 clear 以清空对话历史，输入 stop 以终止对话。\n"
        f"Talk to {name}: `clear` forgets the conversation, `stop` ends it."
    )
    if rounds is None:
        question = "您想体验【单轮对话】还是【多轮对话】？ 请输入（1 代表单轮，2 代表多轮）"
        rounds = click.prompt(question, type=click.Choice(["1", "2"]), show_choices=False)
    _edit_lines()
    while True:
        try:
            text = click.prompt("\n<|Human|>", prompt_suffix=": ", default="", show_default=False).strip()
        except click.Abort:
            click.echo()
            return
        if text == "stop":
            return
        if text == "clear":
            conversation.clear()
            click.echo("> history cleared")
        elif text:
            if rounds == "1":
                conversation.clear()
            _answer(conversation, name, text)


def _edit_lines() -> None:
    """Let a terminal's lines be of any length: by itself it keeps 4,095 bytes of one and drops the rest."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # Windows has no readline and no such limit
            import readline  # noqa: F401  # `input` uses it from here on


def _answer(conversation: "Chat", name: str, text: str) -> None:
    from glmtune.errors import DataError

    click.echo("> begin generated, wait a moment...")
    start = time.perf_counter()
    click.echo(f"<|{name}|>: ", nl=False)
    try:
        _check_typed(text)
        for piece in conversation.ask(text):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" ...(interrupted, not remembered)", nl=False)
    except DataError as err:
        click.echo(f"\nerror: {err}\nhint: {err.hint}")
        return
    click.echo(f"\n> use time: {time.perf_counter() - start:.3f} s")


def _check_typed(text: str) -> None:
    """Refuse what came in as other bytes than text. Raises `DataError`."""
    from glmtune.errors import DataError

    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"character {err.start + 1} of the line, {text[err.start]!a}, is no text in {sys.stdin.encoding}",
            hint="the conversation goes on: type it again, in a terminal set to UTF-8",
        ) from None
