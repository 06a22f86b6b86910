"""The settings of a run: name, type, default and meaning of each, written once.

Help texts and docs/settings.md are generated from these fields; settings.zh.yaml has the Chinese texts. This
module imports no torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from glmtune.charset import AUTO, UTF8, find_codec
from glmtune.paths import find_rows, join_hint
from glmtune.recipe.base import MAX_SIZE, NameIn, SettingError, Settings
from glmtune.recipe.distributed import Ddp, Engine
from glmtune.recipe.method import Lora, Method, TrainedPart
from glmtune.recipe.objective import Objective, Sft
from glmtune.recipe.retain import Retain
from glmtune.recipe.source import Empty, Source, Sources, known_charset
from glmtune.recipe.train import Train
from glmtune.templates import TEMPLATES
from glmtune.values import shown

DEFAULT_MAX_TOKENS = 1024
DEFAULT_NEW_TOKENS = 512
MOST_NAMED = 3
"""Most sources that a message names one by one."""

Encoding = Literal["chat", "thudm", "chatglm3", "glm4"]
Overlong = Literal["cut", "cut_any", "drop", "error"]

_BOTH_LIMITS = "set both, as the official scripts do: data.max_source_tokens=64 data.max_target_tokens=64"


class Data(Settings):
    """The rows: their files, and the way they are read, encoded and cut."""

    train: Sources = None
    """Training rows: a JSON array, JSON lines, CSV or parquet file, a folder of `datasets`, or a Hub data
    set as hf:OWNER/NAME. A path such as examples/adverts.jsonl that does not exist here means the bundled
    file. Several sources are a list, [a.json, b.csv]; in it, {path: b.csv, max_rows: 100} gives one source
    its own `max_rows`, `charset`, `prompt_column`, `response_column`, `history_column`, `input_column`,
    `system_column`, `ignore_columns`, `transcripts` or `empty`, and a part of each epoch: a `ratio` of the
    whole (0.1), or a `weight` beside the others'."""
    validation: Path | None = None
    """Rows for the evaluation loss; empty: rows are held out of `train`."""
    max_validation_rows: int | None = Field(None, ge=1)
    """Most rows for the evaluation loss, drawn with `split_seed`; empty: 200 of a validation file, or all
    held-out rows."""
    test: Path | None = None
    """Rows that `glmtune evaluate` answers and scores; empty: the validation rows."""
    max_test_rows: int | None = Field(None, ge=1)
    """Answer and score only the first rows, at most this many; `evaluate.max_rows` is the older name."""
    charset: str = UTF8
    """Character set of the data files; a byte-order mark takes precedence. `auto`: detected for each file and
    reported in a note; else a name that Python knows, such as `gb18030`, `big5` or `utf-16-le`."""
    holdout_rows: int | None = Field(None, ge=1)
    """Rows held out of `train` if no validation file is named; empty: 5 %, at least 1, at most 200."""
    split_seed: int = 42
    """Seed for drawing the held-out and the validation rows."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first training rows, at most this many, counted over all files."""
    prompt_column: str | None = None
    """Column of the question; empty: detected from the rows."""
    response_column: str | None = None
    """Column of the answer; empty: detected from the rows."""
    history_column: str | None = None
    """Column of earlier rounds, `[[question, answer], ...]`; empty: `history`, if the rows have it. If it is
    set, ChatGLM-6B's `encoding: thudm` trains on `[Round 0]` where a row has no history, as the official
    script does."""
    input_column: str | None = None
    """Column of a text that follows the question on a new line; empty: alpaca's `input`."""
    system_column: str | None = None
    """Column of the system text; empty: `system`, if the rows have it."""
    ignore_columns: tuple[str, ...] = ()
    """Columns to ignore, as if the rows did not have them; `messages.name` means the key `name` of the
    turns in `messages`. Other filled columns that are not read are reported with their number of rows;
    columns that carry meaning, such as `context`, `images` or `tools`, stop the run until they are ignored
    here or read."""
    transcripts: Literal["turns", "text"] | None = None
    """For a question that is itself a dialogue written as text, with `Human: ...` and `Assistant: ...` on
    lines of their own: split it into turns, or keep it as text; empty: an error."""
    empty: Empty = "error"
    """Rows with an empty answer in any round. `error`: stop, as a model that learns empty answers gives them;
    empty questions are kept, as texts alone are learned so. `skip`: leave out rows with an empty answer or
    question, as ChatGLM-6B's and ChatGLM2's script does; they are counted, and the first is named."""
    fill: Mapping[str, str | None] = {}
    """Words for placeholders: `data.fill.name=小橙` writes 小橙 wherever a row has `{{name}}`, in training,
    validation and test rows alike. If a recipe lists a name here, with or without a word, `name=小橙` is
    enough."""
    source_prefix: str = ""
    """Text in front of the first question (ChatGLM-6B, ChatGLM2: of the whole prompt, as in the official
    scripts), in training, evaluation and chat alike."""
    system: str | None = None
    """System message for conversations without one of their own, in training, evaluation and chat alike; not
    for ChatGLM-6B and ChatGLM2, which have none."""
    encoding: Encoding = "chat"
    """`chat`: rows are encoded as chat encodes them. `thudm`, `chatglm3`, `glm4`: exactly as the official
    scripts preprocess them."""
    combine: bool = False
    """The GLM-4 script's setting of this name, for `encoding: glm4`: encode the conversation as a whole, and
    learn the last answer only."""
    loss: Literal["all_turns", "last_turn"] = "all_turns"
    """Answers of a conversation that are learned: all of them, or the last one only."""
    max_tokens: int | None = Field(None, ge=16)
    """Longest example in tokens; empty: 1024, or the model's context if that is shorter, unless the two
    limits below are set."""
    max_source_tokens: int | None = Field(None, ge=4)
    """Longest question part in tokens (the official scripts' max_source_length / max_input_length)."""
    max_target_tokens: int | None = Field(None, ge=2)
    """Longest answer in tokens, its end token included (max_target_length / max_output_length)."""
    overlong: Overlong = "cut"
    """Treatment of longer rows. `cut`: cut the oldest turns, then the middle of the question, then the end of
    the answer; with `encoding: chat`, an error if more than half of the rows need it. `cut_any`: the same
    without that error. `drop`: leave them out. `error`: stop."""

    @property
    def words(self) -> dict[str, str]:
        """The words of `fill`, none of them empty."""
        return {name: word for name, word in self.fill.items() if word}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of training rows in order, also for a single path; empty if none is named."""
        if self.train is None:
            return ()
        return (Source(path=self.train),) if isinstance(self.train, Path) else self.train

    def names_of_sources(self) -> list[str]:
        """Return a name for each source: its path, with its number where several have the same."""
        paths = [str(source.path) for source in self.sources]
        return [f"{path} ({i + 1})" if paths.count(path) > 1 else path for i, path in enumerate(paths)]

    @property
    def train_name(self) -> str:
        """The sources' paths, shortened for a message."""
        names = [str(source.path) for source in self.sources]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + more

    def of_source(self, source: Source) -> "Data":
        """Return these settings with the source's own ones on top."""
        return self.model_copy(update=source.reading)

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _one_file(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            raise SettingError("names one file, got a list", hint=join_hint([str(name) for name in value]))
        return value

    @field_validator("charset")
    @classmethod
    def _known_charset(cls, value: str) -> str:
        return known_charset(value)

    @field_validator("fill")
    @classmethod
    def _all_words(cls, fill: Mapping[str, str | None]) -> Mapping[str, str | None]:
        if wrong := next((name for name in fill if not re.fullmatch(r"\w+", name)), None):
            hint = "letters, digits and _ only: data.fill.name=... fills {{name}}"
            raise SettingError(f"{shown(wrong)} is no name of a placeholder", hint=hint)
        if missing := [name for name, word in fill.items() if not (word or "").strip()]:
            placeholders = " and ".join(f"{{{{{name}}}}}" for name in missing)
            words = " ".join(f"{name}=..." for name in missing)
            raise SettingError(
                f"no word for {placeholders}", hint=f"add it: `glmtune train RECIPE model=MODEL {words}`"
            )
        return fill

    @field_validator("encoding", mode="before")
    @classmethod
    def _no_charset(cls, value: object) -> object:
        # in other programs `encoding` is the character set, so a user may well mean that
        if isinstance(value, str) and (value == AUTO or find_codec(value)):
            raise SettingError(
                f"{value!r} is a character set; this is the preprocessing: {', '.join(get_args(Encoding))}",
                hint=f"for the character set of the files write data.charset={value}",
            )
        return value

    @field_validator("train", "validation", "test", mode="after")
    @classmethod
    def _bundled(cls, value: object) -> object:
        return find_rows(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _lengths(self) -> "Data":
        # two ways to limit lengths: one limit for the whole example, or two, as the official scripts have
        pair = (self.max_source_tokens, self.max_target_tokens)
        if (pair[0] is None) != (pair[1] is None):
            raise SettingError("max_source_tokens and max_target_tokens go together", hint=_BOTH_LIMITS)
        if pair[0] is not None and self.max_tokens is not None:
            raise SettingError(
                "max_tokens is one limit for both parts, max_source_tokens and max_target_tokens are two",
                hint="keep one way: data.max_tokens=null, or "
                "data.max_source_tokens=null data.max_target_tokens=null",
            )
        if self.encoding != "chat" and pair[0] is None:
            raise SettingError(
                f"encoding {self.encoding} needs max_source_tokens and max_target_tokens, as its script does",
                hint=_BOTH_LIMITS,
            )
        return self


class Samples(Settings):
    """Fixed prompts, answered at every evaluation into samples.jsonl."""

    prompts: tuple[str, ...] = ("你好",)
    """Prompts, one turn each; an empty list turns samples off."""
    built_in: bool = True
    """Ask a few questions more, before step 1 and at the end, and show both answers to each: who the model
    is, a sentence to make three times, a sum, an advert, a conversation of two turns."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer in tokens."""


class Evaluation(Settings):
    """The answers of `glmtune evaluate` to the test rows: greedy, in batches."""

    batch_size: int = Field(16, ge=1, le=MAX_SIZE)
    """Rows answered at once."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; empty: `data.max_target_tokens`, else 512, or half of the model's context
    if that is shorter."""
    compute: Literal["exact", "fast", "auto"] = "exact"
    """`fast`: weights and activations in int8, on an x86 CPU: faster, but answers may differ. `auto`: `fast`
    if it is faster for `batch_size` rows on this machine; the choice is recorded and used when the evaluation
    is continued."""
    strength: float = Field(1.0, ge=0, le=2)
    """Share of the update that answers: base + `strength` x update; 0: the base, 1: as trained."""


class Recipe(Settings):
    """All settings of one run; the recipe that a run saves repeats that run."""

    model: str
    """Folder of the model, run or adapter; or a model's name on a hub: OWNER/NAME or hf:OWNER/NAME (Hugging
    Face), modelscope:OWNER/NAME. Training a run or an adapter continues from its weights, with its method."""
    revision: str | None = None
    """Branch, tag or commit of a model on a hub; empty: the hub's main branch. A run records the commit."""
    base: Path | None = None
    """Base model of an adapter that is evaluated or trained further; only needed if the base has moved from
    its recorded place."""
    template: Annotated[str, NameIn(TEMPLATES)] | None = None
    """Chat format; empty: determined from the model's folder."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type in which the frozen weights are held; auto: the type they were trained in, else the stored one,
    but fp16 instead of bf16 on a card without bf16, bf16 instead of fp16 on a CPU with bf16 instructions. On
    a CPU products may be computed in another type: `train.precision`. A run records the type."""
    quant: Literal["int8", "int4", "nf4"] | None = None
    """Quantise the frozen blocks while loading, to half (`int8`) or a quarter (`int4`, `nf4`) of their
    memory; `nf4` is QLoRA's format, with double quantisation (extra `bitsandbytes`); empty: as stored. A
    folder that is already quantised needs no setting."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ...; `balanced`: one model over all cards, to evaluate and chat."""
    output: Path | None = None
    """Folder of the run, which must be new or empty; left out: `runs/<model>-<method>`, with a recipe file
    `runs/<model>-<recipe>`, followed by the method unless the recipe's name contains it."""
    method: Method = Lora()
    """Fine-tuning method; an adapter that is trained further keeps its own."""
    objective: Objective = Sft()
    """Loss that is minimised."""
    data: Data = Data()
    """The rows."""
    train: Train = Train()
    """The training."""
    distributed: Engine = Ddp()
    """Engine of a training with several processes; a single one has none."""
    retain: Retain = Retain()
    """The abilities of the base, kept and measured."""
    samples: Samples = Samples()
    """Answers to watch during training."""
    evaluate: Evaluation = Evaluation()
    """The scoring of answers."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        """Move `evaluate.max_rows`, as earlier recipes have it, to `data.max_test_rows`."""
        if not isinstance(values, dict):
            return values
        evaluate = values.get("evaluate")
        if not isinstance(evaluate, dict) or "max_rows" not in evaluate:
            return values
        data = values.get("data") or {}
        data = data.model_dump(exclude_unset=True) if isinstance(data, Data) else data
        if not isinstance(data, dict):  # an error, which the validation of `data` raises
            return values
        # an empty `evaluate.max_rows` sets nothing; both names with a value would be ambiguous
        most, rest = evaluate["max_rows"], {key: v for key, v in evaluate.items() if key != "max_rows"}
        if most is not None and data.get("max_test_rows") is not None:
            raise SettingError(
                "evaluate.max_rows is the older name of data.max_test_rows",
                hint="leave evaluate.max_rows out",
            )
        named = {} if most is None else {"max_test_rows": most}
        return {**values, "evaluate": rest, "data": {**data, **named}}

    @field_validator("model", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _frozen_if_quantised(self) -> "Recipe":
        if self.quant and self.method.kept is TrainedPart.MODEL:
            raise SettingError(
                f"quant: {self.quant} weights cannot be trained in full",
                hint="method=lora trains an adapter on them; quant=null leaves them as they are stored",
            )
        return self
