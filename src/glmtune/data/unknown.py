"""Errors for rows of no known format: what the rows look like, and the settings or form that mend them."""

import re
from collections.abc import Collection, Mapping, Sequence

from glmtune.data import columns
from glmtune.errors import DataError
from glmtune.near import nearest
from glmtune.values import RowObject, TableRow, decoded, is_filled

ROW_FORM = '{"prompt": "...", "response": "..."}'
TURNS_FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
TURNS = {
    "messages": {"role", "content"},
    "conversations": {"from", "value"},
    "conversation": {"human", "assistant"},
}
"""The keys of a turn, or of a round, by the column that takes a list of them."""
QUESTIONS = (
    *("prompt", "question", "query", "instruction", "ask", "user", "human", "input", "q", "source", "src"),
    *("text", "sentence", "review", "comment", "content", "document", "passage", "article", "context"),
    *("问题", "提问", "问", "指令", "输入", "用户", "文本", "句子", "评论", "内容", "原文"),
)
ANSWERS = (
    *("response", "answer", "output", "completion", "reply", "assistant", "bot", "gpt", "a", "target", "tgt"),
    *("summary", "answers", "label", "labels", "sentiment", "class", "category", "translation"),
    *("回答", "答案", "回复", "答", "输出", "助手", "摘要", "译文", "标签", "类别", "分类", "情感"),
)
"""Names of columns of questions, and of answers, the likelier first."""
OTHERS = {
    *("", "id", "uid", "uuid", "index", "no", "url", "link", "date", "time", "timestamp", "title", "author"),
    *("lang", "language", "split", "source", "tag", "tags", "meta", "metadata", "score", "编号", "序号"),
}
"""Names of columns that hold neither question nor answer."""
VERDICTS = {"label", "kto_tag"}
"""Names of KTO's mark of a good or a bad answer. Source: huggingface.co/docs/trl, kto_trainer."""
MARKS = re.compile(r"<\|(?:im_start|user|assistant|system)\|>|\[gMASK\]|\[INST\]")
SAMPLED_ROWS = 1000
"""Rows whose values are compared to tell questions from labels."""
QUESTION = re.compile(r"[?？]$|.{30}")
"""Matches a question used as a key; no name of a column looks like this."""
TEXTS = {"text", "content", "document", "article"}
"""Names of the one column of rows for pretraining."""


def unknown_format(rows: Sequence[RowObject], pairs: Sequence[tuple[str, ...]]) -> DataError:
    """Return the error for rows that fit no format; `pairs`: the one or two columns of each known format."""
    row = rows[0]
    found = f"columns found: {columns.names_of(row)}"
    column = dialogue_of(row)
    if column:
        lines = " of JSON lines" if isinstance(row, TableRow) else ""
        return DataError(
            f"a row is one turn of a dialogue; {found}",
            hint=f'put the turns of each dialogue into one row{lines}: {{"{column}": [...]}}',
        )
    for name, cell in row.items():
        turns = decoded(cell)
        column = column_of(turns[0]) if isinstance(turns, list) and turns else None
        if column and column not in row:
            return DataError(
                f"the turns of a dialogue stand in {name!r}, where nobody looks for them",
                hint=f"rename the column {name!r} to {column!r}",
            )
    for pair in pairs:
        inside = next(
            (name for name, cell in row.items() if isinstance(cell, dict) and cell.keys() >= {*pair}), ""
        )
        if inside:
            return DataError(
                f"the columns {' and '.join(map(repr, pair))} stand inside {inside!r}; {found}",
                hint=f"write the object under {inside!r} as the row itself",
            )
        absent = [name for name in pair if name not in row]
        if all(nearest(name, row) for name in absent):
            return columns.missing(absent[0], row, pair if len(pair) > 1 else ())
    return DataError(f"cannot tell the format; {found}", hint=_hint_to_name_columns(rows))


def dialogue_of(turn: object) -> str | None:
    """Return the column that takes a list of such turns; None for a round, and for anything else."""
    column = column_of(turn)
    return None if column == "conversation" else column


def column_of(turn: object) -> str | None:
    """Return the column that takes a list of such turns or rounds; None for anything else."""
    keys = turn.keys() if isinstance(turn, Mapping) else set()
    return next((column for column, known in TURNS.items() if keys >= known), None)


# Question and answer


def _hint_to_name_columns(rows: Sequence[RowObject]) -> str:
    """Return the advice for rows that are no dialogue: to write them anew, or to name their columns."""
    row = rows[0]
    is_named = bool({*map(_spelled, row)} & {*QUESTIONS, *ANSWERS})
    if any(MARKS.search(cell) for cell in row.values() if isinstance(cell, str)):
        return f"write the turns without a chat format's marks, which training puts in: {TURNS_FORM}"
    if len(rows) == 1 and not isinstance(row, TableRow) and any(QUESTION.search(name) for name in row):
        return f"if each name is a question and its value the answer, write a row of each: {ROW_FORM}"
    first = ""
    if isinstance(row, TableRow) and not is_named:
        first = "put names above line 1 if it is a row, such as prompt and response; if it is none, "
    question, answer = guess_pair(rows)
    if (question is None) != (answer is None) or len(row) < 2:
        alone = "text alone, as for pretraining, is not trained; " if TEXTS & {*map(_spelled, row)} else ""
        return f"{alone}a row needs a question and an answer: {ROW_FORM}"
    naming = (
        f"name the columns of question and answer: {columns.name_pair(question or '...', answer or '...')}"
    )
    return f"{first}{naming}"


def guess_pair(rows: Sequence[RowObject]) -> tuple[str | None, str | None]:
    """Return the columns that look like question and answer, by name, else by values; None if unsure."""
    names = {_spelled(name): name for name, cell in rows[0].items() if isinstance(cell, str | int | float)}
    question = next((name for name in QUESTIONS if name in names), None)
    answer = next((name for name in ANSWERS if name in names and name != question), None)
    rest = [name for name in names if name not in OTHERS and name not in (question, answer)]
    rest = [name for name in rest if not columns.carries_meaning(name)]
    if question is None and answer is None and len(rest) == 2:
        question, answer = rest
        # in their order; but a column of few values that occur again and again holds labels, the answers
        sample = rows[:SAMPLED_ROWS]
        num_values = {name: len({str(row.get(names[name])) for row in sample}) for name in rest}
        if min(num_values.values()) * 2 <= len(sample):
            question, answer = sorted(rest, key=lambda name: -num_values[name])
    elif len(rest) == 1 and (question or answer):
        question, answer = question or rest[0], answer or rest[0]
    return names.get(question or ""), names.get(answer or "")


def _spelled(name: str) -> str:
    return name.strip().lower()


# Answers that are compared or marked


def check_not_pairs(row: RowObject, ignored: Collection[str]) -> None:
    """Raise `DataError` for preference pairs: no format reads a chosen and a rejected answer."""
    spelled = {_spelled(name): name for name, cell in row.items() if name not in ignored and is_filled(cell)}
    chosen = next((spelled[name] for name in spelled if "chosen" in name), None)
    rejected = next((spelled[name] for name in spelled if "reject" in name), None)
    if chosen and rejected:
        raise DataError(
            f"a preference pair, {chosen!r} and {rejected!r}, as for DPO: pairs are not trained yet",
            hint=f"to train on the chosen answers alone: {_hint_to_drop_rejected(row, chosen, rejected)}",
        )


def check_not_marked(rows: Sequence[RowObject], ignored: Collection[str]) -> None:
    """Raise `DataError` for rows that mark some answers as bad: they would be learned like good ones."""
    for name in (name for name in rows[0] if _spelled(name) in VERDICTS and name not in ignored):
        cells = [row.get(name) for row in rows]
        bad = sum(cell is False or str(cell).lower() == "false" for cell in cells)
        if bad and all(isinstance(cell, bool) or str(cell).lower() in ("true", "false") for cell in cells):
            raise DataError(
                f"{name!r} marks answers as good or bad, as for KTO, and {bad:,} of {len(cells):,} are "
                "false: marked answers are not trained yet",
                hint=f"take out the rows whose {name!r} is false; or, to learn the bad answers too, "
                f"{columns.setting('ignore_columns', [name])}",
            )


def _hint_to_drop_rejected(row: RowObject, chosen: str, rejected: str) -> str:
    """Return the settings, or the change of the file, that make rows of preference pairs' chosen answers."""
    ignoring = columns.setting("ignore_columns", [rejected])
    answer = decoded(row[chosen])
    turns = next((name for name in TURNS if isinstance(row.get(name), list)), None)
    if isinstance(answer, dict) and turns:
        both = columns.setting("ignore_columns", [chosen, rejected])
        return f"put what {chosen!r} holds behind the turns in {turns!r}; {both}"
    if isinstance(answer, list) and answer and (column := dialogue_of(answer[0])):
        return f"rename {chosen!r} to {column!r}; {ignoring}"
    rest = {name: cell for name, cell in row.items() if name not in (chosen, rejected)}
    question, _ = guess_pair([rest])
    if question is None or not isinstance(answer, str):
        return f"write rows like {ROW_FORM}"
    inputs = [name for name in rest if _spelled(name) in columns.INPUTS and is_filled(rest[name])]
    below = [columns.setting("input_column", [name]) for name in inputs if name != question][:1]
    return " ".join([columns.name_pair(question, chosen), *below, ignoring])
