"""`glmtune data`."""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH
from glmtune.cli.hints import Verbs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from glmtune.data.example import Example
    from glmtune.data.reader import Dataset
    from glmtune.data.stats import Stats
    from glmtune.recipe import Data

COLUMN_SETTINGS = (
    "prompt_column",
    "response_column",
    "history_column",
    "input_column",
    "system_column",
    "ignore_columns",
    "transcripts",
    "charset",
)
UNLIMITED_TOKENS = 1_000_000_000


@click.group(cls=Verbs, short_help="Look at your rows, and write them in another format.")
def data() -> None:
    """Look at files of rows, and write them in another format. No model is needed.

    FILE and IN are a JSON array, JSON lines, CSV or parquet; a folder written by save_to_disk; or a data set
    of the Hub, hf:OWNER/NAME.
    """


@data.command(short_help="Write rows in another format.")
@click.argument("source", type=PATH, metavar="IN...")
@click.argument("target", type=PATH, metavar="OUT")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--to", required=True, metavar="FORMAT", help="alpaca, prompt_response, messages, sharegpt, ..."
)
def convert(source: Path, target: Path, words: tuple[str, ...], to: str) -> None:
    """Write the rows of IN, or of several files one after another, to the new file OUT in another format.

    OUT's suffix says what kind of file it is: .json, .jsonl, .csv, .tsv or .parquet. A row that FORMAT cannot
    hold is an error, and nothing is written. KEY is prompt_column, response_column, history_column,
    input_column, system_column, ignore_columns, transcripts or charset, as in a recipe's data.

    \b
      glmtune data convert chats.json chats.jsonl --to messages
      glmtune data convert faq.csv faq.json --to alpaca prompt_column=q response_column=a
      glmtune data convert a.json b.csv all.jsonl --to messages
    """
    from glmtune.data.convert import convert_file

    more = [word for word in words if "=" not in word]
    paths = [source, target, *(PATH.convert(word, None, None) for word in more)]
    sources, last = paths[:-1], paths[-1]
    settings = _settings([word for word in words if "=" in word])
    with _settings_of_all(sources):
        datasets = convert_file(sources, last, to, settings)
    for path, dataset in zip(sources, datasets, strict=True):
        click.echo(f"{len(dataset.examples):,} rows of {path} ({dataset.format}) written to {last} ({to})")
        for note in (*dataset.notes(), *(f"warning: {text}" for text in dataset.warnings())):
            click.echo(note)


@data.command(short_help="Count what files of rows hold.")
@click.argument("file", type=PATH, metavar="FILE...")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", type=PATH, help="Also count tokens, with this model's tokenizer.")
@click.option("--template", help="Chat format of the model, where its folder does not tell it.")
def stats(file: Path, words: tuple[str, ...], model: Path | None, template: str | None) -> None:
    """Count the rows of each FILE: format, turns, systems and tools, empty questions, lengths, duplicates;
    show the first question and answer. Counts that are 0 are left out.

    Columns that nobody reads are named; those that carry meaning are an error until a KEY says what they are:
    KEY is as of `glmtune data convert`.

    \b
      glmtune data stats my.json
      glmtune data stats my.json --model /models/chatglm3-6b
    """
    settings = _settings([word for word in words if "=" in word])
    files = [file, *(PATH.convert(word, None, None) for word in words if "=" not in word)]
    with _settings_of_all(files):
        for path in files:
            _print_stats(path, settings, model, template)


@contextmanager
def _settings_of_all(files: "Sequence[Path]") -> "Iterator[None]":
    """Where there are several files, a hint that names a setting says that it is for all of them."""
    from glmtune.errors import ConfigError, DataError

    try:
        yield
    except (ConfigError, DataError) as err:
        if len(files) < 2 or not re.search(r"\bdata\.\w+=", err.hint):
            raise
        more = "here that is for every file: take files that differ one by one"
        raise type(err)(str(err), hint=f"{err.hint}; {more}") from None


def _print_stats(path: Path, settings: "Data", model: Path | None, template: str | None) -> None:
    from glmtune.data.reader import SeveralFilesError
    from glmtune.data.stats import measure_file

    try:
        found, dataset = measure_file(path, settings)
    except SeveralFilesError as err:
        raise err.leading(f"count each: `glmtune data stats {shlex.join(err.names)}`") from None
    click.echo(path)
    for name, value in (*_lines(found), *_first(dataset)):
        click.echo(f"  {name:<24} {value}")
    for note in (*dataset.file_notes(), *(f"warning: {text}" for text in dataset.warnings())):
        click.echo(f"  {note}")
    if model is not None:
        for name, value in _encoded(model, template, dataset.examples):
            click.echo(f"  {name:<24} {value}")


def _settings(words: "Sequence[str]") -> "Data":
    """The settings that say how rows are read; `prompt_column=q` is short for `data.prompt_column=q`."""
    from glmtune.errors import ConfigError
    from glmtune.recipe import Data
    from glmtune.recipe.parse import build_part, read_values

    for word in words:
        key = word.partition("=")[0].removeprefix("data.")
        if key not in COLUMN_SETTINGS:
            hint = "allowed: " + ", ".join(COLUMN_SETTINGS)
            hint = f"the character set is charset={word.partition('=')[2]}" if key == "encoding" else hint
            raise ConfigError(f"{key}: not a setting of this command", hint=hint)
    values = read_values({}, [f"data.{word.removeprefix('data.')}" for word in words])
    return build_part(Data, values.get("data", {}), "data")


def _lines(found: "Stats") -> list[tuple[str, str]]:
    """What is counted, by name; what does not occur is left out, but for the first lines."""
    counts = {
        "with history": found.with_history,
        "with a system text": found.with_system,
        "with tools": found.with_tools,
        "with tool calls": found.with_calls,
        "with thoughts": found.with_thoughts,
        "with unlearned answers": found.unlearned,
        "same as an earlier row": found.repeated,
        "same question as earlier": found.contradicting,
    }
    plain = {
        "empty questions kept": found.empty_questions,
        "open <think> in answers": found.open_thoughts,
        "cut after last answer": found.cut,
        "left out: no answer": found.unanswered,
    }
    return [
        ("rows", f"{found.rows:,}"),
        ("format", found.format),
        ("answers in a row", str(found.answers)),
        ("characters in a row", str(found.characters)),
        ("... in its last answer", str(found.answer_characters)),
        *((name, f"{count:,} ({count / found.rows:.1%})") for name, count in counts.items() if count),
        *((name, f"{count:,}") for name, count in plain.items() if count),
    ]


def _first(dataset: "Dataset") -> list[tuple[str, str]]:
    """The columns that are read, and the first row as it is read."""
    from glmtune.values import shown

    messages = dataset.examples[0].messages
    index = next(i for i, message in enumerate(messages) if message.role == "assistant")
    asked = [message.content for message in messages[:index] if message.role == "user"]
    answer = messages[index]
    said = answer.content or ", ".join(call.name for call in answer.calls)
    return [
        ("columns read", ", ".join(map(shown, dataset.columns))),
        ("first question", shown("\n".join(asked)) if asked else "none"),
        ("first answer, learned" if answer.loss else "first answer", shown(said)),
    ]


def _encoded(model: Path, template: str | None, examples: "list[Example]") -> "Iterator[tuple[str, str]]":
    """By name, lengths of the rows as this model reads them, uncut, and what it was not made for."""
    from glmtune.data.encode import encode_examples
    from glmtune.families import context_of
    from glmtune.load import tokenizer_of
    from glmtune.locations import resolve
    from glmtune.recipe import Data

    location = resolve(model)
    tokenizer = tokenizer_of(location, template=template)
    report = encode_examples(tokenizer, examples, Data(max_tokens=UNLIMITED_TOKENS)).report
    yield "tokens", f"{report.percentiles} ({tokenizer.template})"
    if context := context_of(location.folder):
        longer = sum(length > context for length in report.lengths)
        yield "the model's context", f"{context:,} tokens; {longer:,} rows are longer"
    if report.thoughts_lost:
        yield "thoughts left out", f"{report.thoughts_lost:,}: {tokenizer.template} learns none"
