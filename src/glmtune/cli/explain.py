"""`glmtune explain`, and what is added to an error of this command line that it can explain."""

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, print_json
from glmtune.errors import AnswerError, ConfigError, TrainingError
from glmtune.language import LANGUAGES, Language, own_language

if TYPE_CHECKING:
    from glmtune.explanations import Explained, LogExplained

STDIN = Path("-")
WIDTH = 100
"""Most columns of a text; commands are not broken."""
PASTE = {
    "en": "paste the message, then press {} on a line of its own",
    "zh": "粘贴报错，然后在新的一行按 {}",
}
UNKNOWN = {
    "en": "no message is known (lines read: {:,})",
    "zh": "{:,} 行里没有认得的报错",
}
ONLY_CONSEQUENCES = {
    "en": "these lines only report that something failed; the error itself is not known (lines read: {:,})",
    "zh": "这些只是说出错了；{:,} 行里没有认得的真正原因",
}
LIKELY = {"en": "it is likely this:", "zh": "可能是这一行："}
OWN = {
    "en": "if it is of glmtune, its line `hint:` says what to do, and docs/troubleshooting.md more",
    "zh": "如果是 glmtune 的报错，它的 `hint:` 一行写着怎么办，详见 docs/troubleshooting.zh.md",
}
ASK = {
    "en": (
        "`glmtune doctor` looks at this machine; with its report and the whole log, ask at "
        "https://github.com/glmtune/glmtune/issues/new/choose"
    ),
    "zh": (
        "`glmtune doctor` 看看这台机器；把它的输出和完整日志贴到 "
        "https://github.com/glmtune/glmtune/issues/new/choose 提问"
    ),
}
CAUSE = {
    "en": "cause: {}\n       more: `glmtune explain {}`",
    "zh": "原因：{}\n      详细：`glmtune explain {}`",
}


@click.command(short_help="Say what an error message means, in any program's log.")
@click.argument("logs", nargs=-1, type=PATH, metavar="[LOG]...")
@click.option(
    "--lang", type=click.Choice(LANGUAGES), help="Language: en, or zh for 中文; else this system's."
)
@click.option("--list", "is_list", is_flag=True, help="List the messages that are known, by name.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON array, an object for each log.")
def explain(logs: tuple[Path, ...], lang: Language | None, is_list: bool, as_json: bool) -> None:
    """Explain the error messages in a LOG of any program: their cause, the cure there, the command here.

    Known are messages of transformers, PEFT, accelerate, PyTorch, DeepSpeed, LLaMA-Factory, vLLM, of the
    official scripts and of glmtune. Without LOG, or with -, the text comes from a pipe or is pasted. LOG may
    also be the name of a message. Causes come first, then what only reports them. Exit code 1 if no cause is
    known: then the line that looks most like one is shown.

    \b
      glmtune explain train.log
      python main.py --do_train 2>&1 | glmtune explain
      glmtune explain cuda-out-of-memory --lang zh
    """
    from dataclasses import asdict

    from glmtune.explanations import explain_name
    from glmtune.explanations.table import known_messages

    language = lang or own_language()
    if is_list:
        for name in known_messages():
            click.echo(f"{name:<26} {getattr(known_messages()[name], language).title}")
        return
    reports: list[dict[str, object]] = []
    is_known = True
    for path in logs or (STDIN,):
        named = None if path == STDIN or path.exists() else explain_name(str(path), language)
        if named:
            reports.append({"log": None, "explained": [asdict(named)]})
            if not as_json:
                click.echo("\n".join(_shown(named)))
            continue
        found = _read(path, language)
        is_known &= any(each.kind != "consequence" for each in found.explained)
        reports.append({"log": str(path), **asdict(found)})
        if not as_json:
            if len(logs) > 1:
                click.echo(f"== {path}")
            click.echo("\n".join(_report(found, language)))
    if as_json:
        print_json(reports)
    sys.exit(0 if is_known else 1)


def _read(path: Path, language: Language) -> "LogExplained":
    """Explain a file, a pipe or what is typed. Raises `ConfigError` for one that cannot be read."""
    from glmtune.charset import NotTextError
    from glmtune.explanations import explain_log
    from glmtune.explanations.reading import read_log
    from glmtune.explanations.table import known_messages
    from glmtune.near import nearest

    if path == STDIN:
        if sys.stdin.isatty():
            key = "Ctrl-Z, Enter" if sys.platform == "win32" else "Ctrl-D"
            click.echo(PASTE[language].format(key), err=True)
        raw = getattr(sys.stdin, "buffer", None)  # a text that a program put in its place has none
        return explain_log(read_log(raw, "stdin") if raw else [sys.stdin.read()], language)
    try:
        with path.open("rb") as stream:
            return explain_log(read_log(stream, path.name), language)
    except NotTextError as err:
        raise ConfigError(f"{path}: {err}", hint=err.hint) from None
    except OSError as err:
        near = nearest(str(path), known_messages())
        meant = f"did you mean {near}?" if near else "name a file, or - for a pipe;"
        hint = f"{meant} `glmtune explain --list` has the names of messages"
        raise ConfigError(f"{path}: {err.strerror}", hint=hint) from None


def _report(found: "LogExplained", language: Language) -> Iterator[str]:
    """Yield the lines about a log; of what only reports a cause that is known, two lines."""
    is_known = any(each.kind != "consequence" for each in found.explained)
    for index, each in enumerate(found.explained):
        yield from ([""] if index else [])
        yield from islice(_shown(each), 2 if is_known and each.kind == "consequence" else None)
    if is_known:
        return
    yield from ([""] if found.explained else [])
    unknown = ONLY_CONSEQUENCES if found.explained else UNKNOWN
    yield unknown[language].format(found.num_lines)
    if found.likely:
        yield from (LIKELY[language], f"{found.likely.line}: {found.likely.text}")
        yield from [OWN[language]] if found.likely.text.startswith("error: ") else []
    yield ASK[language]


def _shown(explained: "Explained") -> Iterator[str]:
    """Yield the lines of an explanation, broken; not the message's and the commands."""
    from glmtune.explanations import COMMAND

    for line in explained.lines():
        if line.startswith("  ") and not line.startswith(COMMAND):
            yield from _broken(line)
        else:
            yield line


def _broken(line: str) -> Iterator[str]:
    """Break a line to fit the terminal, its further lines indented."""
    from rich.cells import cell_len

    most = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    text, width = "", 0
    # a word with the blanks behind it; a Chinese character, which may end a line, with its punctuation
    for piece in re.findall(r"^ +|[\u4e00-\u9fff][，。；：！？、）”]*|[^\s\u4e00-\u9fff]+\s*|\s+", line):
        size = cell_len(piece.rstrip())
        if width + size > most and text.strip():
            yield text.rstrip()
            text, width = "      ", 6
        text, width = text + piece, width + cell_len(piece)
    yield text.rstrip()


def short_explanation(error: BaseException) -> str:
    """Return the cause of a known failure of PyTorch, the system or a training; empty for any other error.

    A mistake in a setting or a file is said by the error itself.
    """
    from glmtune.explanations import explain_error

    if not (isinstance(error, TrainingError | AnswerError) or error.__cause__):
        return ""
    language = own_language()
    found: Iterable[Explained] = explain_error(error, language)
    return next((CAUSE[language].format(each.cause, each.name) for each in found), "")


def explain_traceback(error: BaseException) -> None:
    """Have Python print the explanations below the traceback of an error that is none of glmtune's."""
    from glmtune.explanations import explain_error

    for each in explain_error(error):
        error.add_note("\n" + "\n".join(_shown(each)))
