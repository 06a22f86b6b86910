"""Reads the hand-written blocks in `texts/` and fills their slots.

A file holds slot lists and blocks; a blank line ends a block, `#` begins a comment line:

    @slot colour = sky:blue | grass:green     entries, each with up to ten fields
    @also colour = snow:white                 more entries
    @same other = colour                      a second slot that is drawn from the same entries

    Q: What colour is the {colour}? | ...     questions; {colour} is field 0, {colour1} field 1
     + Tell me the colour of the {colour}.    more questions, or more answers after an A
    A: The {colour} is {colour1}.             answers
    lead: Hello, | Please tell me:            put in front of the questions, as further rows
    answers: 2                                answers drawn for a question (default 2)
    rows: 300                                 draw so many rows instead of making all of them
    hold: colour other                        held out by these slots' values, not by the question
    never: sky & grass                        values that are not to meet in one row

Several Q/A pairs in a block are the rounds of one dialogue.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SLOT = re.compile(r"\{([^\d{}]+)(\d?)\}")
TRIES_PER_ROW = 20

Entry = tuple[str, ...]
Filling = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Row:
    """One training row, and what decides on which side of the split it lies."""

    kind: str
    prompt: str
    response: str
    group: str
    """Rows of one group are held out together."""
    root: str = ""
    """What must stay known: a root loses at most one of its groups, never its only one. Empty: no limit."""
    history: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, object]:
        """The row as a line of the file has it."""
        history = [list(turn) for turn in self.history]
        return {"prompt": self.prompt, "response": self.response, "history": history}


@dataclass(slots=True)
class Block:
    """Questions and answers with slots."""

    place: str
    rounds: list[tuple[list[str], list[str]]] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """All questions and answers."""
        return [text for questions, answers in self.rounds for text in (*questions, *answers)]

    def slots(self) -> list[str]:
        """The names of the slots, in the order of their first use."""
        return list(dict.fromkeys(match[1] for text in self.texts() for match in SLOT.finditer(text)))

    def leads(self) -> list[str]:
        """What may stand in front of a question; nothing comes first."""
        return ["", *_parts(self.options.get("lead", ""), keep_spaces=True)]

    def allows(self, filling: Filling) -> bool:
        """Whether these values may meet."""
        unwanted = set(_parts(self.options.get("never", ""), sign="&"))
        return not unwanted or not unwanted <= {entry[0] for entry in filling.values()}


def read_blocks(path: Path, slots: dict[str, list[Entry]]) -> list[Block]:
    """The blocks of a file; its slot lists are added to `slots`. ValueError names the line that is wrong."""
    blocks = [Block(f"{path.name}:1")]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            blocks.append(Block(f"{path.name}:{number + 1}"))
        elif line.startswith("@"):
            _read_slot(line, slots, f"{path.name}:{number}")
        elif not line.startswith("#"):
            _read_line(blocks[-1], line, f"{path.name}:{number}")
    return [block for block in blocks if block.rounds]


def _read_slot(line: str, slots: dict[str, list[Entry]], place: str) -> None:
    head, _, values = line.partition("=")
    keyword, name = head.split()
    if keyword == "@same":
        slots[name] = slots[values.strip()]
        return
    if keyword == "@also":
        slots[name].extend(tuple(value.split(":")) for value in _parts(values))
        return
    if keyword != "@slot" or name in slots:
        raise ValueError(
            f"{place}: {'unknown word ' + keyword if keyword != '@slot' else name + ' is taken'}"
        )
    slots[name] = [tuple(value.split(":")) for value in _parts(values)]
    if len({len(entry) for entry in slots[name]}) > 1:
        raise ValueError(f"{place}: the entries of {name} differ in their number of fields")


def _read_line(block: Block, line: str, place: str) -> None:
    key, _, value = line.partition(":")
    if line.startswith(" + ") and block.rounds:
        questions, answers = block.rounds[-1]
        (answers or questions).extend(_parts(line.removeprefix(" + ")))
    elif key == "Q":
        block.rounds.append((_parts(value), []))
    elif key == "A" and block.rounds:
        block.rounds[-1][1].extend(_parts(value))
    elif key in ("lead", "answers", "rows", "hold", "never"):
        block.options[key] = value
    else:
        raise ValueError(f"{place}: cannot read {line!r}")


def _parts(text: str, sign: str = "|", *, keep_spaces: bool = False) -> list[str]:
    parts = [part[1:] if keep_spaces else part.strip() for part in text.split(sign)]
    return [part for part in parts if part.strip()]


def fill(text: str, filling: Filling) -> str:
    """The text with its slots filled."""
    return SLOT.sub(lambda match: filling[match[1]][int(match[2] or 0)], text)


def rows_of(block: Block, kind: str, slots: Mapping[str, Sequence[Entry]], rng: random.Random) -> list[Row]:
    """The rows of a block: all of them, or as many as its `rows` option says.

    ValueError for a slot or a field that is not there.
    """
    _check_slots(block, slots)
    makes = _drawn_rows if "rows" in block.options else _all_rows
    return list(dict.fromkeys(makes(block, kind, slots, rng)))


def _check_slots(block: Block, slots: Mapping[str, Sequence[Entry]]) -> None:
    for text in block.texts():
        for name, index in SLOT.findall(text):
            if name not in slots or int(index or 0) >= len(slots[name][0]):
                raise ValueError(f"{block.place}: no {{{name}{index}}} in the slot lists")


def _all_rows(
    block: Block, kind: str, slots: Mapping[str, Sequence[Entry]], rng: random.Random
) -> Iterator[Row]:
    names = block.slots()
    most = int(block.options.get("answers", 2))
    for entries in itertools.product(*(slots[name] for name in names)):
        filling = dict(zip(names, entries, strict=True))
        if not block.allows(filling):
            continue
        for questions in itertools.product(*(questions for questions, _ in block.rounds)):
            for lead in block.leads():
                for _ in range(most):
                    yield _row(block, kind, filling, questions, lead, rng)


def _drawn_rows(
    block: Block, kind: str, slots: Mapping[str, Sequence[Entry]], rng: random.Random
) -> Iterator[Row]:
    names, wanted, seen = block.slots(), int(block.options["rows"]), set()
    for _ in range(wanted * TRIES_PER_ROW):
        filling = {name: rng.choice(slots[name]) for name in names}
        if not block.allows(filling):
            continue
        questions = [rng.choice(questions) for questions, _ in block.rounds]
        row = _row(block, kind, filling, questions, rng.choice(block.leads()), rng)
        if (row.history, row.prompt) in seen:
            continue
        seen.add((row.history, row.prompt))
        yield row
        if len(seen) == wanted:
            return


def _row(
    block: Block, kind: str, filling: Filling, questions: Sequence[str], lead: str, rng: random.Random
) -> Row:
    answers = [fill(rng.choice(answers), filling) for _, answers in block.rounds]
    asked = [fill(question, filling) for question in questions]
    held = block.options.get("hold", "").split()
    values = " ".join(filling[name][0] for name in (held or filling))
    group = f"{kind} {values}" if held else f"{kind} {' '.join(asked)}"
    asked[0] = lead + asked[0]
    turns = tuple(zip(asked, answers, strict=True))
    root = "" if held else f"{block.place} {values}"
    return Row(kind, turns[-1][0], turns[-1][1], group, root, turns[:-1])
