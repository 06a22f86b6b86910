"""The messages of other programs, and glmtune's own: what they mean and what to do, in English and Chinese.

`messages.toml` has them; a message that is missing is a row there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from glmtune.errors import ConfigError
from glmtune.explanations.search import Sighting, search_log
from glmtune.explanations.table import KINDS, Kind, KnownMessage, known_messages
from glmtune.language import LANGUAGES, Language, own_language

LABELS = {"en": ("cause", "there", "here", "more"), "zh": ("原因", "原工具里", "在这里", "参考")}
COMMAND = " " * 10
"""Stands before a command to type."""
TIMES = {"en": " (and {} more like it)", "zh": "（另有 {} 行相同）"}


@dataclass(frozen=True, slots=True)
class Explained:
    """A message that was found in a log; `str()` gives all of it as lines to print."""

    name: str
    """Its name in the table; `glmtune explain NAME` shows it."""
    kind: Kind
    """`cause`: an error; `symptom`: the run goes on in vain; `consequence`: of an error that stands above."""
    line: int
    """Number of the first line that has it; 0 if it is not of a log."""
    text: str
    """The line itself, or the part of it with the message."""
    times: int
    """Number of lines that have it."""
    title: str
    cause: str
    there: str
    """The cure in the program that gave it."""
    here: str
    """The same in glmtune."""
    commands: tuple[str, ...]
    """Commands to type; MODEL, FILE, RUN stand for the reader's own."""
    link: str
    language: Language

    def __str__(self) -> str:
        """Return the lines to print, not broken."""
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the place with the message, the title, and a line for each part."""
        if self.line:
            more = TIMES[self.language].format(f"{self.times - 1:,}") if self.times > 1 else ""
            yield f"{self.line}: {self.text}{more}"
        yield f"  {self.title}"
        colon = "：" if self.language == "zh" else ": "
        cause, there, here, more = (f"  {label}{colon}" for label in LABELS[self.language])
        yield from (cause + self.cause, there + self.there, here + self.here)
        yield from (COMMAND + command for command in self.commands)
        yield more + self.link


@dataclass(frozen=True, slots=True)
class LogExplained:
    """The known messages of a log, causes first; `likely`: the last line like an error that is not known."""

    explained: list[Explained]
    likely: Sighting | None
    num_lines: int


def explain(text: str, lang: Language | None = None) -> list[Explained]:
    """Return the known messages in a log or error message of any program, causes before consequences.

        print(*explain(open("train.log").read()), sep="\\n\\n")

    `lang`: "en" or "zh", by default the language of the system. Raises `ConfigError` for another language.
    """
    return explain_log([text], lang).explained


def explain_log(chunks: Iterable[str], lang: Language | None = None) -> LogExplained:
    """Explain a log that comes in parts of whole lines, as `explain`."""
    language = _language(lang)
    search, table = search_log(chunks), known_messages()
    found = [_explain(table[name], sighting, language) for name, sighting in search.sightings.items()]
    found.sort(key=lambda each: (KINDS.index(each.kind), each.line))
    return LogExplained(found, search.likely, search.num_lines)


def explain_name(name: str, lang: Language | None = None) -> Explained | None:
    """Return the explanation of a row of the table, None if it has no row of that name."""
    row = known_messages().get(name)
    return _explain(row, Sighting(0, row.signs[0]), _language(lang)) if row else None


def explain_error(error: BaseException, lang: Language | None = None) -> list[Explained]:
    """Explain an exception and those that led to it."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(messages) < 100:  # a chain may be a ring
        messages.append(f"{type(cause).__qualname__}: {cause}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return [replace(each, line=0) for each in explain("\n".join(reversed(messages)), lang)]


def _language(lang: Language | None) -> Language:
    if lang is not None and lang not in LANGUAGES:
        raise ConfigError(f"lang: unknown {lang!r}", hint='lang="en" or lang="zh"')
    return lang or own_language()


def _explain(row: KnownMessage, sighting: Sighting, language: Language) -> Explained:
    words = {"en": row.en, "zh": row.zh}[language]
    return Explained(
        name=row.name,
        kind=row.kind,
        line=sighting.line,
        text=sighting.text,
        times=sighting.times,
        title=words.title,
        cause=words.cause,
        there=words.there,
        here=words.here,
        commands=row.commands,
        link=row.link,
        language=language,
    )
