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
    "empty",
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
    input_column, system_column, ignore_columns, transcripts, empty or charset, as in a recipe's data.

    \b
      glmtune data convert chats.json chats.jsonl --to messages
      glmtune data convert faq.csv faq.json --to alpaca prompt_column=q response_column=a
      glmtune data convert a.json b.csv all.jsonl --to messages
    """
    from glmtune.data.convert import convert_file

    # click allows one argument of any length, `words`: of more than two files the rest is in there
    more = [word for word in words if "=" not in word]
    paths = [source, target, *(PATH.convert(word, None, None) for word in more)]
    sources, output = paths[:-1], paths[-1]
    settings = _settings([word for word in words if "=" in word])
    with _shared_settings(sources):
        datasets = convert_file(sources, output, to, settings)
    for path, dataset in zip(sources, datasets, strict=True):
        click.echo(f"{len(dataset.examples):,} rows of {path} ({dataset.format}) written to {output} ({to})")
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
    from glmtune.data.reader import SeveralFilesError
    from glmtune.data.stats import measure_file

    with _shared_settings(files):
        for path in files:
            try:
                counts, dataset = measure_file(path, settings)
            except SeveralFilesError as err:
                raise err.leading(f"count each: `glmtune data stats {shlex.join(err.names)}`") from None
            click.echo(path)
            for name, value in (*_counts(counts), *_first_round(dataset)):
                click.echo(f"  {name:<24} {value}")
            for note in (*dataset.file_notes(), *(f"warning: {text}" for text in dataset.warnings())):
                click.echo(f"  {note}")
            # the rows first: they are printed even if the model's folder turns out to be none
            for name, value in _token_counts(model, template, dataset.examples) if model else ():
                click.echo(f"  {name:<24} {value}")


@contextmanager
def _shared_settings(files: "Sequence[Path]") -> "Iterator[None]":
    """Extend an error's hint that names a setting: with several files, the setting applies to all of them."""
    from glmtune.errors import ConfigError, DataError

    try:
        yield
    except (ConfigError, DataError) as err:
        if len(files) < 2 or not re.search(r"\bdata\.\w+=", err.hint):
            raise
        more = "here that is for every file: take files that differ one by one"
        raise type(err)(str(err), hint=f"{err.hint}; {more}") from None


def _settings(words: "Sequence[str]") -> "Data":
    """Build the settings for reading rows; `prompt_column=q` is short for `data.prompt_column=q`."""
    from glmtune.errors import ConfigError
    from glmtune.recipe import Data
    from glmtune.recipe.parse import build_part, read_values

    for word in words:
        key = word.partition("=")[0].removeprefix("data.")
        if key not in COLUMN_SETTINGS and not key.startswith("fill."):
            hint = "allowed: " + ", ".join(COLUMN_SETTINGS)
            # users of pandas type `encoding`
            hint = f"the character set is charset={word.partition('=')[2]}" if key == "encoding" else hint
            raise ConfigError(f"{key}: not a setting of this command", hint=hint)
    values = read_values({}, [f"data.{word.removeprefix('data.')}" for word in words])
    return build_part(Data, values.get("data", {}), "data")


def _counts(stats: "Stats") -> list[tuple[str, str]]:
    """Return the name and text of each count; a count of 0 is left out."""
    shares = {
        "with history": stats.with_history,
        "with a system text": stats.with_system,
        "with tools": stats.with_tools,
        "with tool calls": stats.with_calls,
        "with thoughts": stats.with_thoughts,
        "with unlearned answers": stats.unlearned,
        "same as an earlier row": stats.repeated,
        "same question as earlier": stats.contradicting,
    }
    counts = {
        "empty questions kept": stats.empty_questions,
        "open <think> in answers": stats.open_thoughts,
        "cut after last answer": stats.cut,
        "left out: no answer": stats.unanswered,
    }
    return [
        ("rows", f"{stats.rows:,}"),
        ("format", stats.format),
        ("answers in a row", str(stats.answers)),
        ("characters in a row", str(stats.characters)),
        ("... in its last answer", str(stats.answer_characters)),
        *((name, f"{count:,} ({count / stats.rows:.1%})") for name, count in shares.items() if count),
        *((name, f"{count:,}") for name, count in counts.items() if count),
        *(("left out: empty", f"{len(stats.empty):,} (first in {place})") for place in stats.empty[:1]),
    ]


def _first_round(dataset: "Dataset") -> list[tuple[str, str]]:
    """Return the columns that are read, and question and answer of the first row."""
    from glmtune.values import shown

    messages = dataset.examples[0].messages
    # an answer may follow several questions in a row, and tool calls may be all of it
    index = next(i for i, message in enumerate(messages) if message.role == "assistant")
    questions = [message.content for message in messages[:index] if message.role == "user"]
    answer = messages[index]
    answer_text = answer.content or ", ".join(call.name for call in answer.calls)
    return [
        ("columns read", ", ".join(map(shown, dataset.columns))),
        ("first question", shown("\n".join(questions)) if questions else "none"),
        ("first answer, learned" if answer.loss else "first answer", shown(answer_text)),
    ]


def _token_counts(
    model: Path, template: str | None, examples: "list[Example]"
) -> "Iterator[tuple[str, str]]":
    """Yield lengths of the rows in tokens, uncut, rows beyond the model's context, and thoughts left out."""
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
