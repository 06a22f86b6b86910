"""`glmtune chat`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.console import MODEL, PATH, compute_option, loading_options, strength_option
from glmtune.log import tell

if TYPE_CHECKING:
    from glmtune.cli.talk import Speaker
    from glmtune.locations import Location
    from glmtune.models.protocol import CausalLM


@click.command(short_help="Talk to a model in the terminal.")
@click.argument("path", type=MODEL)
@click.option(
    "--rounds",
    type=click.Choice(["1", "2"]),
    help="1: single-turn, 2: multi-turn; else asked at a terminal, and 2 for the lines of a pipe.",
)
@click.option("--temperature", type=float, help="Below 1 sharpens, 0: no sampling; else the model's own.")
@click.option(
    "--top-p", type=float, help="Draw from the likeliest tokens of this total; else the model's own."
)
@click.option(
    "--top-k", type=int, help="Draw from so many likeliest tokens, 0: no limit; else the model's own."
)
@click.option("--repetition-penalty", type=float, help="Above 1 repeats less; else the model's own.")
@click.option("--max-new-tokens", type=int, help="Longest answer in tokens; default 512.")
@click.option("--seed", type=int, help="Makes the answers repeatable.")
@click.option("--system", help="System message; without it, the one the run was tuned with.")
@click.option(
    "--history",
    type=PATH,
    metavar="FILE",
    help="Keep the conversations in this file, and go on with its last one. Each line is a row that "
    "data.train=FILE reads.",
)
@click.option(
    "--compare", is_flag=True, help="Have each question answered by the base too, above the tuned model."
)
@strength_option()
@click.option("--base", type=PATH, help="Base model of an adapter, or of --compare, if it has moved.")
@click.option("--revision", help="Branch, tag or commit of a model on a hub.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@loading_options
@compute_option
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
    system: str | None,
    history: Path | None,
    compare: bool,
    base: Path | None,
    revision: str | None,
    compute: str,
    compile_step: bool,
    **options: Any,  # Any: texts and numbers of loading and sampling
) -> None:
    """Talk to a model, run or adapter folder.

    At a terminal Enter sends and Alt-Enter breaks the line; a pasted text is one question. Ctrl-C stops an
    answer, which is then not remembered, or clears the line; twice on an empty line it leaves, as `stop` and
    Ctrl-D do. `clear` forgets the conversation. In a pipe each line is a question; where stdout is no
    terminal, only the answers go there. Rounds that no longer fit what the model was made for are left out,
    the oldest first. `glmtune verify` shows what is proven of a run as it opens.

    \b
      glmtune chat runs/chatglm3-6b-lora
      glmtune chat runs/chatglm3-6b-lora --compare --temperature 0
      glmtune chat runs/chatglm3-6b-lora --strength 0.7
      glmtune chat /models/chatglm3-6b --history talk.jsonl
    """
    from glmtune.cli.questions import note, open_questions
    from glmtune.cli.talk import Talk
    from glmtune.cli.transcript import Transcript
    from glmtune.load import tokenizer_of
    from glmtune.locations import resolve
    from glmtune.reports.recorded_run import has_one_round

    loading = {key: options.pop(key) for key in ("template", "dtype", "quant", "device", "strength")}
    location = resolve(path, base=base, revision=revision, has_base=compare or loading["strength"] != 1)
    transcript = Transcript(history) if history else None
    tokenizer = tokenizer_of(location, template=loading["template"])
    taught = location.taught
    name = _name(location.run or path, tokenizer.chat_format.title, loading["strength"])
    speakers = _load_speakers(
        location,
        base,
        name,
        compute,
        is_compared=compare,
        load_options=loading,
        chat_options={
            "tokenizer": tokenizer,
            **asdict(taught if system is None else replace(taught, system=system)),
            "compile_step": compile_step,
            **{key: value for key, value in options.items() if value is not None},
        },
    )
    if location.run and rounds != "1" and has_one_round(location.run):
        note("> this run's rows have one round each: answers to a second question were not trained")
    note("model load done...")  # the line of the program that `talk` names as its source
    note(f"> {speakers[-1].chat.sampling}")
    talk = Talk(speakers, open_questions(), transcript)
    talk.greet(name)
    talk.hold(rounds)


def _load_speakers(
    location: "Location",
    base: Path | None,
    name: str,
    compute: str,
    *,
    is_compared: bool,
    load_options: dict[str, Any],
    chat_options: dict[str, Any],
) -> list["Speaker"]:
    """Load the model and return its speaker; if it is compared with its base, the base's speaker before it.

    `base`: where the base lies, if it has moved. The base is the same model with its adapter set aside, if
    the adapter allows it, else a second model.
    """
    from glmtune.chat import Chat
    from glmtune.cli.talk import Speaker
    from glmtune.generate import choose_compute, pick_compute
    from glmtune.load import choose_type
    from glmtune.locations import find_base

    strength = load_options.pop("strength")
    wanted_by = "--compare" if is_compared else "--strength" if strength != 1 else ""
    untrained = find_base(location, base, wanted_by=wanted_by) if wanted_by else None
    # chosen once for both: in two types, rounding would be part of the comparison
    dtype = choose_type(location, load_options["dtype"], load_options["device"], load_options["quant"])
    load_options = {**load_options, "dtype": dtype}
    model = _load_verified(location, {**load_options, "strength": strength, "base": untrained})
    compute = pick_compute(model, compute)
    model = choose_compute(model, compute)  # under the same name, so that the exact weights are freed
    if untrained is None or not is_compared:
        return [Speaker(name, Chat(model, **chat_options))]
    tuned = Speaker(f"{name} (tuned)", Chat(model, **chat_options))
    base_name = f"{_name(untrained.run or Path(untrained.name))} (base)"
    # a compiled step has the adapter compiled into it: it cannot be set aside then
    if location.adapter and not chat_options["compile_step"]:
        from glmtune.adapters.attached import setting_aside  # loads PEFT

        if set_aside := setting_aside(model, location.adapter, location.base):
            return [Speaker(base_name, Chat(model, **chat_options), set_aside), tuned]
    load_options["quant"] = load_options["quant"] or location.quant
    base_model = choose_compute(_load_verified(untrained, load_options), compute)
    return [Speaker(base_name, Chat(base_model, **chat_options)), tuned]


def _load_verified(location: "Location", load_options: dict[str, Any]) -> "CausalLM":
    """Load a location's model and tell that it is verified; `glmtune verify` prints the single checks."""
    from glmtune.load import load_with_checks
    from glmtune.workflows.events import drain

    model = drain(load_with_checks(location, **load_options)).eval()
    if location.adapter or location.card:
        proven = "adapter" if location.adapter else "trained weights"
        tell(f"{location.run or location.trained}: {proven} verified")
    return model


def _name(path: Path, title: str = "", strength: float = 1) -> str:
    """Return the name of a run's or model's folder; a family's `title` if it differs in case only."""
    name = path.absolute().name
    at = "" if strength == 1 else f" at strength {strength:g}"
    return (title if name.lower() == title.lower() else name) + at
