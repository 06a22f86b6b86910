"""Encoding training rows, beside the batched `encode` of the package below and the tokenizer class's own.

Each tokenizer is a case: sentencepiece for ChatGLM-6B, ChatGLM2 and ChatGLM3, tiktoken for GLM-4. All sides
encode the same texts, ADGEN's rows as often as it takes; ours renders them and makes labels and rows beside
that. `over-long`: the same with a limit that one row in twenty exceeds, so that it is cut. Rows and
tokenizers lie in ../shared, or where $GLMTUNE_SHARED says. It wants an idle machine.

    python -m benchmarks.encode
    python -m benchmarks.encode chatglm3 --num-rows 100 --rounds 1 --dry      # shows that it runs
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.measure import Record, begin, finish, parse, seconds_of, take_turns
from benchmarks.scores import SHARED as ADGEN

TOKENIZERS = ADGEN.parents[1] / "tokenizers"
FAMILIES = {
    "chatglm3": ("chatglm2_3.tokenizer.model", "tokenizer.model", "chatglm3-6b_20231207"),
    "chatglm2": ("chatglm2_3.tokenizer.model", "tokenizer.model", "chatglm2-6b_20230908"),
    "chatglm": ("ice_text.model", "ice_text.model", "chatglm-6b_20230904"),
    "glm4": ("glm4.tokenizer.model", "tokenizer.model", "glm-4-9b-chat"),
}
"""Vocabulary, its name in a model's folder, and the folder of its settings."""
NUM_ROWS = 20_000


class Encoding:
    """One way of encoding the texts, as a side that takes turns; its figure is seconds on the clock."""

    def __init__(self, encode: Callable[[Any], object], rows: Sequence[Any]) -> None:
        self.encode, self.rows = encode, rows

    def warm(self) -> None:
        """Build what is built once."""
        self.encode(self.rows[:100])

    def run(self) -> float:
        """Seconds for all rows."""
        return seconds_of(lambda: self.encode(self.rows))


def open_tokenizer(name: str, work: Path) -> Any:
    """The genuine tokenizer of a family, from a folder of its own."""
    from glmtune.tokenizers import read_tokenizer

    vocabulary, stored_as, settings = FAMILIES[name]
    folder = work / f"tokenizer-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TOKENIZERS / vocabulary, folder / stored_as)
    for file in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZERS / "configs" / settings / file, folder / file)
    return read_tokenizer(folder)


def read_rows(number: int) -> list[Any]:
    """ADGEN's training rows, again and again."""
    from glmtune.data.example import Example
    from glmtune.templates import Message

    lines = (ADGEN / "train_first5000.json").read_text(encoding="utf-8").splitlines()
    pairs = [(row["content"], row["summary"]) for row in map(json.loads, lines)]
    return [
        Example((Message("user", question), Message("assistant", answer)), f"row {index}")
        for index, (question, answer) in enumerate(islice(cycle(pairs), number))
    ]


def run_family(name: str, options: argparse.Namespace) -> Record:
    """All ways of one tokenizer in turn."""
    from glmtune.data.encode import encode_examples
    from glmtune.recipe import Data

    record = begin(f"encode {name}", "s", options)
    tokenizer, rows = open_tokenizer(name, options.work), read_rows(options.num_rows)
    texts = [message.content for row in rows for message in row.messages]
    if hasattr(tokenizer, "sp_model"):
        package, batch = (
            "sentencepiece",
            lambda part: tokenizer.sp_model.encode(part, num_threads=options.threads),
        )
    else:
        package, batch = "tiktoken", lambda part: list(map(tokenizer.encode_plain, part))
    whole = encode_examples(tokenizer, rows, Data(max_tokens=4096))
    lengths = sorted(len(row.input_ids) for row in whole.rows)
    limit = lengths[len(lengths) * 19 // 20]
    sides = {
        f"{package} alone": Encoding(batch, texts),
        "ours": Encoding(lambda part: encode_examples(tokenizer, part, Data(max_tokens=4096)), rows),
        "ours, 5 % over-long": Encoding(
            lambda part: encode_examples(tokenizer, part, Data(max_tokens=limit)), rows
        ),
        "tokenizer(texts)": Encoding(lambda part: tokenizer(part, add_special_tokens=False), texts),
    }
    record["sides"] = take_turns(sides, options.rounds)
    record["checks"] = {
        "rows": len(rows),
        "tokens a row": sum(lengths) / len(rows),
        "limit of the over-long": limit,
    }
    return record


def main(words: Sequence[str] | None = None) -> list[Record]:
    """Measure the tokenizers named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", nargs="*", choices=[[], *FAMILIES], default=[])
    parser.add_argument("--num-rows", type=int, default=NUM_ROWS)
    options = parse(parser, words)
    return [finish(run_family(name, options), "encode", options) for name in options.family or FAMILIES]


if __name__ == "__main__":
    main()
