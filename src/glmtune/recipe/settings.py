"""Every setting of a run: its name, type, default and meaning, written once.

Help texts and the reference page are printed from these fields. This module imports no torch.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from glmtune.charset import AUTO, UTF8, find_codec
from glmtune.paths import find_rows, join_hint
from glmtune.recipe.base import MAX_RATE, MAX_SIZE, NameIn, SettingError, Settings
from glmtune.recipe.method import Lora, Method, TrainedPart
from glmtune.recipe.objective import Objective, Sft
from glmtune.recipe.source import Source, Sources, known_charset
from glmtune.templates import TEMPLATES

DEFAULT_EPOCHS = 1
DEFAULT_MAX_TOKENS = 1024
DEFAULT_NEW_TOKENS = 512
MOST_NAMED = 3
"""Sources that a message names one by one."""

Encoding = Literal["chat", "thudm", "chatglm3", "glm4"]
Overlong = Literal["cut", "cut_any", "drop", "error"]

_BOTH_LIMITS = "set both, as the official scripts do: data.max_source_tokens=64 data.max_target_tokens=64"


class Data(Settings):
    """Which rows, how they are read, encoded and cut."""

    train: Sources = None
    """Training rows: a JSON array, JSON lines, CSV or parquet file, a folder of `datasets`, or a Hub data
    set as hf:OWNER/NAME. examples/adverts.jsonl and its like, where they are not here, are the bundled
    ones. Several are a list, [a.json, b.csv], in which {path: b.csv, max_rows: 100} gives one its own
    `max_rows`, `charset`, `prompt_column`, `response_column`, `history_column`, `input_column`,
    `system_column`, `ignore_columns` or `transcripts`."""
    validation: Path | None = None
    """Rows for the evaluation loss; without it, rows are held out of `train`."""
    max_validation_rows: int | None = Field(None, ge=1)
    """Most rows that the evaluation loss is taken over, drawn by `split_seed`; empty: 200 of a validation
    file, and all rows that are held out."""
    test: Path | None = None
    """Rows that `glmtune evaluate` answers and scores; without it, the validation rows."""
    max_test_rows: int | None = Field(None, ge=1)
    """Answer and score only the first so many of them; `evaluate.max_rows` is its older name."""
    charset: str = UTF8
    """Character set of the files of rows; a byte-order mark decides before it. `auto`: what each is found to
    be, told in a note; else a name that Python knows, such as `gb18030`, `big5` or `utf-16-le`."""
    holdout_rows: int | None = Field(None, ge=1)
    """Rows held out of `train` when no validation file is named; empty: 5 %, at least 1, at most 200."""
    split_seed: int = 42
    """Seed of the draw of held-out and validation rows."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first so many training rows, of several files together."""
    prompt_column: str | None = None
    """Column of the question; empty: found by looking at the rows."""
    response_column: str | None = None
    """Column of the answer; empty: found by looking at the rows."""
    history_column: str | None = None
    """Column of earlier rounds, `[[question, answer], ...]`; empty: `history` if the rows have it. Naming it
    makes ChatGLM-6B's `encoding: thudm` train on `[Round 0]` where a row has none, as its script does."""
    input_column: str | None = None
    """Column of text that follows the question on a new line; empty: alpaca's `input`."""
    system_column: str | None = None
    """Column of the system text; empty: `system` if the rows have it."""
    ignore_columns: tuple[str, ...] = ()
    """Columns to leave out, as if the rows had none of them; `messages.name` is the key `name` of the turns
    in `messages`. Filled columns that nobody reads are told with their number; those that carry meaning, such
    as `context`, `images` or `tools`, stop the run until they are named here or read."""
    transcripts: Literal["turns", "text"] | None = None
    """How to read a question that is a dialogue written as text, `Human: ...` and `Assistant: ...` on lines
    of their own: as turns, or as the text it is; empty: an error."""
    source_prefix: str = ""
    """Text put in front of the first question (ChatGLM-6B, ChatGLM2: of the whole prompt, as the official
    scripts do), in training, evaluation and chat alike."""
    system: str | None = None
    """System message put first, in training, evaluation and chat alike (ChatGLM3 and GLM-4)."""
    encoding: Encoding = "chat"
    """`chat`: what chat sends. `thudm`, `chatglm3`, `glm4`: the official scripts' preprocessing, exactly."""
    combine: bool = False
    """GLM-4's script setting for `encoding: glm4`: encode the conversation as a whole, learn the last
    answer."""
    loss: Literal["all_turns", "last_turn"] = "all_turns"
    """Which answers of a conversation are learned."""
    max_tokens: int | None = Field(None, ge=16)
    """Longest example in tokens; empty: 1024, or the model's context where that is shorter, unless the two
    limits below are set."""
    max_source_tokens: int | None = Field(None, ge=4)
    """Longest question part in tokens (the official scripts' max_source_length / max_input_length)."""
    max_target_tokens: int | None = Field(None, ge=2)
    """Longest answer in tokens, its end token included (max_target_length / max_output_length)."""
    overlong: Overlong = "cut"
    """What to do with longer rows. `cut`: oldest turns, then the middle of the question, then the end of
    the answer; an error if more than half of the rows need it. `cut_any`: the same without that error.
    `drop`: leave them out. `error`: stop."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of training rows in their order, also of a path alone; empty: none is named."""
        if self.train is None:
            return ()
        return (Source(path=self.train),) if isinstance(self.train, Path) else self.train

    @property
    def train_name(self) -> str:
        """The sources' paths in a few words, for a message."""
        names = [str(source.path) for source in self.sources]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + more

    def of_source(self, source: Source) -> "Data":
        """These settings as one source is read by them."""
        return self.model_copy(update=source.reading)

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise SettingError("names one file, got a list", hint=join_hint([str(name) for name in value]))
        return value

    @field_validator("charset")
    @classmethod
    def _known_charset(cls, value: str) -> str:
        return known_charset(value)

    @field_validator("encoding", mode="before")
    @classmethod
    def _no_charset(cls, value: Any) -> Any:
        if isinstance(value, str) and (value == AUTO or find_codec(value)):
            raise SettingError(
                f"{value!r} is a character set; this is the preprocessing: {', '.join(get_args(Encoding))}",
                hint=f"for the character set of the files write data.charset={value}",
            )
        return value

    @field_validator("train", "validation", "test", mode="after")
    @classmethod
    def _bundled(cls, value: Any) -> Any:
        return find_rows(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _lengths(self) -> "Data":
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


class Train(Settings):
    """How long, how fast, in what precision."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; empty: from `epochs`."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Passes over the training rows; empty: 1, unless `steps` is set."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step, over all processes: more cards make a step faster, not bigger."""
    micro_batch_size: int = Field(1, ge=1)
    """Rows that one device works on at once."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW; `adamw_8bit` holds its two means in 1 byte each in place of 4 (extra `bitsandbytes`)."""
    lr: float | None = Field(None, ge=0, le=MAX_RATE)
    """Peak learning rate of AdamW; empty: the method's, as `method.name` lists them. A run records it."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up; `linear` and `cosine` end at 0."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's running mean."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's running square."""
    adam_epsilon: float = Field(1e-8, gt=0, le=MAX_RATE)
    """AdamW's denominator floor. 1e-8 is 0 in fp16, hence the 1e-4 of half-precision recipes; here it is
    never fp16: trained weights and AdamW's means are fp32."""
    max_grad_norm: float = Field(1.0, ge=0, le=MAX_RATE)
    """Clip the global gradient norm to this; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto: the frozen weights' type. Trainable weights are fp32 always. bf16
    needs a card that has it; fp16 trains with loss scaling."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    seed: int = Field(42, ge=0)
    """Seed of the row order, the adapter's first weights and dropout."""
    log_every: int | None = Field(None, ge=1)
    """Steps between progress lines; empty: 1 in a run of at most 50 steps, else 10."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations; empty: ten over the run. The loss before step 1 and at the end always."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; empty: at each evaluation."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept; the best is kept besides."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better loss; empty: never."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `tensorboard`)."""

    @model_validator(mode="after")
    def _length(self) -> "Train":
        if self.steps is not None and self.epochs is not None:
            raise SettingError(
                f"steps {self.steps} and epochs {self.epochs:g} both say how long",
                hint="keep one: train.epochs=null leaves the steps, train.steps=null the epochs",
            )
        return self


class Samples(Settings):
    """Fixed prompts answered at every evaluation, into samples.jsonl."""

    prompts: tuple[str, ...] = ("你好",)
    """The prompts, one turn each; empty turns it off."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer in tokens."""


class Evaluation(Settings):
    """How `glmtune evaluate` answers the test rows: greedily, in batches."""

    batch_size: int = Field(16, ge=1, le=MAX_SIZE)
    """Rows answered at once."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; empty: `data.max_target_tokens`, else 512, or half of the model's context
    where that is shorter."""
    compute: Literal["exact", "fast", "auto"] = "exact"
    """`fast`: weights and activations in int8, on an x86 CPU: faster, but answers may differ. `auto`: that,
    if it is faster for `batch_size` rows here; what it took is recorded, and a second run goes on with it."""


class Recipe(Settings):
    """One run, complete: running it again is the run again."""

    model: str
    """Folder of the model, run or adapter; or a model's name on a hub: OWNER/NAME or hf:OWNER/NAME (Hugging
    Face), modelscope:OWNER/NAME. Training a run or an adapter goes on from its weights, by its method."""
    revision: str | None = None
    """Branch, tag or commit of a model on a hub; empty: the hub's main one. A run records the commit."""
    base: Path | None = None
    """Base model of an adapter that is evaluated or gone on from, if it has moved from its recorded place."""
    template: Annotated[str, NameIn(TEMPLATES)] | None = None
    """Chat format; empty: told from the model's folder."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type the frozen weights are held in; auto: that of training, else as stored, but fp16 for bf16 on a
    card without it; on a CPU bf16 for half precision if the processor has bf16 instructions, else fp32 where
    it fits into memory. A run records the type."""
    quant: Literal["int8", "int4", "nf4"] | None = None
    """Quantise the frozen blocks while loading, to a half (`int8`) or a quarter (`int4`, `nf4`) of their
    memory; `nf4` is QLoRA's, with double quantisation (extra `bitsandbytes`); empty: as stored. A folder that
    is quantised opens without it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    output: Path | None = None
    """Folder of the run; empty: `runs/<model>-<method>`, from a recipe file `runs/<model>-<recipe>`, with the
    method behind it where the recipe's name does not say it. It must be new or empty."""
    method: Method = Lora()
    """What is trained; an adapter that is gone on from keeps its own."""
    objective: Objective = Sft()
    """What is minimised."""
    data: Data = Data()
    """The rows."""
    train: Train = Train()
    """The training."""
    samples: Samples = Samples()
    """Answers to watch."""
    evaluate: Evaluation = Evaluation()
    """The scoring."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """`evaluate.max_rows`, as earlier recipes have it, is `data.max_test_rows`."""
        evaluate = values.get("evaluate") if isinstance(values, dict) else None
        if not isinstance(evaluate, dict) or "max_rows" not in evaluate:
            return values
        data = values.get("data") or {}
        data = data.model_dump(exclude_unset=True) if isinstance(data, Data) else data
        if not isinstance(data, dict):  # which is told
            return values
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
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _frozen_if_quantised(self) -> "Recipe":
        if self.quant and self.method.kept is TrainedPart.MODEL:
            raise SettingError(
                f"quant: {self.quant} weights cannot be trained in full",
                hint="method=lora trains an adapter on them; quant=null leaves them as they are stored",
            )
        return self
