"""The settings of a training: length, learning rate, precision, evaluations and checkpoints."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from glmtune.charset import AUTO
from glmtune.recipe.base import MAX_RATE, SettingError, Settings

DEFAULT_EPOCHS = 1
_PASSWORD = re.compile(r"[^/]*://[^/@]*:[^/]*@")
_URL = re.compile(r"[A-Za-z][\w+.:-]*://[^*?\[\]]+")
"""A URL: its protocol, or several that are chained, and no character that fsspec would take for a pattern."""

TokenLimit = Annotated[str, Field(title="N tokens", pattern=r"^[0-9]+ tokens$")]
"""A size of micro-batches in tokens, `2048 tokens`; the title stands for it in the pages of settings."""
MicroBatchSize = int | TokenLimit | Literal["auto"]
"""Rows, tokens, or as many as fit; see `Train.micro_batch_size`."""


def token_limit(size: int | str) -> int | None:
    """Return the tokens of a size of micro-batches, 2048 of `2048 tokens`; None for a number of rows."""
    if isinstance(size, int):
        return None
    number, _, unit = size.partition(" ")
    return int(number) if unit == "tokens" and number.isascii() and number.isdigit() else None


class Train(Settings):
    """The training: its length, learning rate, precision, evaluations and checkpoints."""

    steps: int | None = Field(None, ge=1)
    """Number of optimizer steps; empty: computed from `epochs`."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Passes over the training rows; empty: 1, unless `steps` is set."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step, summed over all processes: more cards make a step faster, not larger."""
    micro_batch_size: MicroBatchSize = "auto"
    """Most rows in one forward and backward pass on each device; or `2048 tokens`: as many rows as have no
    more tokens together. auto: as many tokens as fit into memory, at most 8192, on a CPU 2048. A run records
    its choice."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW; `adamw_8bit` holds its two running means in 1 byte each instead of 4 (extra `bitsandbytes`)."""
    lr: float | None = Field(None, ge=0, le=MAX_RATE)
    """Peak learning rate of AdamW; empty: the method's own, listed under `method.name`. A run records it."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up; `linear` and `cosine` end at 0."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's running mean of the gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's running mean of the squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0, le=MAX_RATE)
    """Number added to AdamW's denominator. In fp16 1e-8 would be 0, hence the 1e-4 of half-precision recipes;
    here trained weights and AdamW's means are always fp32."""
    max_grad_norm: float = Field(1.0, ge=0, le=MAX_RATE)
    """Clip the global gradient norm to this value; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type that is computed in, whatever type the frozen weights are held in; auto: theirs on a GPU; on a CPU
    bf16 for half precision if the processor has bf16 instructions, else fp32. Trained weights are always
    fp32. bf16 needs a card that has it; fp16 trains with loss scaling. A run records the type."""
    gradient_checkpointing: bool | int | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: about 30 % slower, far less memory. A number: only those of
    so many layers, the first ones. auto: only those that would not fit into memory. A run records its
    choice."""
    seed: int = Field(42, ge=0)
    """Seed of the row order, the adapter's initial weights and dropout."""
    log_every: int | None = Field(None, ge=1)
    """Steps between progress lines, where no bar shows each; empty: 1 in runs of up to 50 steps, else 10."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations; empty: a tenth of the run. Before step 1 and at the end it is always
    evaluated."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; empty: as `eval_every`. A better evaluation loss and the end of the run save
    one, too."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep; the best one is kept too, and the best that each of them knew."""
    copy_to: str | None = None
    """URL of a folder that has a copy of each kept checkpoint, with the run's files that `--resume` needs on
    another machine: `s3://BUCKET/FOLDER`, `gs://BUCKET/FOLDER`, `file:///FOLDER`, or another protocol of
    fsspec (extra `fsspec`, and the protocol's own package, such as `s3fs`)."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a better loss; empty: never."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Programs that get the figures too: TensorBoard, Weights & Biases, trackio (an extra of the same name
    each). None of them can stop a run: without login or network W&B keeps the figures in the run's folder,
    and whatever else fails is a warning. `train.tensorboard=true` is an older name of `[tensorboard]`."""

    @model_validator(mode="before")
    @classmethod
    def _tensorboard(cls, values: object) -> object:
        """Move `tensorboard`, as earlier recipes have it, to `report_to`."""
        if not isinstance(values, dict) or not isinstance(values.get("tensorboard"), bool):
            return values
        rest = {key: value for key, value in values.items() if key != "tensorboard"}
        return {"report_to": ("tensorboard",), **rest} if values["tensorboard"] else rest

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _rows_or_tokens(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if isinstance(value, str) and (value == AUTO or token_limit(value)):
            return value
        raise SettingError(
            f"must be a number of rows, 'N tokens' or {AUTO}, got {value!r}",
            hint="train.micro_batch_size=auto, train.micro_batch_size=4 or "
            "'train.micro_batch_size=2048 tokens'",
        )

    @field_validator("copy_to")
    @classmethod
    def _has_protocol(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if _PASSWORD.match(value):
            raise SettingError(
                "has a password in it, which would stand in the run's files and their copies",
                hint="fsspec reads it from the environment: FSSPEC_FTP_PASSWORD for ftp://, and so on; s3:// "
                "and gs:// use the credentials of their own tools",
            )
        if _URL.fullmatch(value):
            return value
        raise SettingError(
            f"must be a URL without any of *?[], got {value!r}",
            hint="train.copy_to=s3://BUCKET/FOLDER; for a folder of another disk train.copy_to=file:///FOLDER",
        )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _all_or_some(cls, value: object) -> object:
        if value == AUTO or (isinstance(value, int) and value >= 0):
            return value
        raise SettingError(
            f"must be true, false, a number of layers or {AUTO}, got {value!r}",
            hint="train.gradient_checkpointing=auto",
        )

    @model_validator(mode="after")
    def _length(self) -> "Train":
        if self.steps is not None and self.epochs is not None:
            raise SettingError(
                f"steps {self.steps} and epochs {self.epochs:g} both say how long",
                hint="keep one: train.epochs=null leaves the steps, train.steps=null the epochs",
            )
        return self
