"""The settings of each fine-tuning method. This module imports no torch."""

from collections.abc import MutableMapping
from enum import Enum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from glmtune.recipe.base import MAX_RATE, MAX_SIZE, OneOf, SettingError, Settings, by_name

ALL_LINEAR = "all_linear"
"""Every linear layer of each block: the sets of `Family.linear_sets` together."""


class TrainedPart(Enum):
    """The part of a model that a method trains; saving, loading and merging depend on it."""

    MODEL = "the whole model, as a folder that stands alone"
    WEIGHTS = "some of the base's own weights, by their names"
    PREFIX = "learned keys and values in front of a text"
    LAYERS = "an adapter within the base's layers, in PEFT's layout"


class MethodSettings(Settings):
    """Base of all methods: the part they train, and the learning rate when `train.lr` is empty."""

    kept: ClassVar[TrainedPart]
    """The part of the model that is trained and saved."""
    default_lr: ClassVar[float]
    """Peak learning rate of AdamW, the same for all families.

    Published rates differ between scripts, not between families."""
    lr_source: ClassVar[str]
    """Source of that rate, for the run's log."""
    depends_on_length: ClassVar[bool] = False
    """True if a step is another one in a run of another number of steps."""


class Full(MethodSettings):
    """Train every weight."""

    kept: ClassVar[TrainedPart] = TrainedPart.MODEL
    default_lr: ClassVar[float] = 5e-5
    """The more careful of two published ones: ChatGLM-6B's and ChatGLM2's ds_train_finetune.sh have 1e-4.
    Source: https://github.com/THUDM/ChatGLM3/blob/main/finetune_demo/configs/sft.yaml."""
    lr_source: ClassVar[str] = "ChatGLM3's sft.yaml"
    name: Literal["full"] = "full"


class Freeze(MethodSettings):
    """Train some of the model's own weights, the last layers or those named, and freeze the others."""

    kept: ClassVar[TrainedPart] = TrainedPart.WEIGHTS
    default_lr: ClassVar[float] = 1e-4
    """Four of ChatGLM-6B's and ChatGLM2's layers, 2 epochs: "no serious catastrophic forgetting".
    Source: https://github.com/liucongg/ChatGLM-Finetuning README."""
    lr_source: ClassVar[str] = "liucongg/ChatGLM-Finetuning"
    name: Literal["freeze"] = "freeze"
    num_layers: int | None = Field(None, ge=1)
    """Number of last layers to train; empty: 3, unless `patterns` is set."""
    patterns: tuple[str, ...] | None = Field(None, min_length=1)
    """Train the parameters whose names match one of these patterns; `*` matches anything, as in
    `*.layers.27.mlp.*`."""

    @model_validator(mode="after")
    def _one_choice(self) -> "Freeze":
        if self.num_layers is not None and self.patterns is not None:
            raise SettingError(
                "num_layers and patterns both say what is trained",
                hint="keep one: method.patterns=null trains the last layers, "
                "method.num_layers=null what the patterns name",
            )
        return self


class LowRank(MethodSettings):
    """The settings that LoRA and AdaLoRA share."""

    kept: ClassVar[TrainedPart] = TrainedPart.LAYERS
    alpha: float = Field(32, gt=0, le=MAX_RATE)
    """Scale of the adapter: its update is multiplied by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the linear layers to adapt, or of a set: `attention` or `mlp`, all of that part of each block,
    and `all_linear`, both. Empty: the attention's projections, `query_key_value`, or `q_proj`,
    `k_proj`, `v_proj` and `o_proj` in models of transformers' own classes (GLM-4-hf, GLM-4-0414, GLM-Z1,
    GLM-4.5)."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        # PEFT's spelling, and LLaMA-Factory's
        return tuple(ALL_LINEAR if name in ("all-linear", "all") else name for name in names)


class Lora(LowRank):
    """Add low-rank adapters to frozen linear layers (Hu et al. 2021, arxiv.org/abs/2106.09685)."""

    default_lr: ClassVar[float] = 1e-4
    """With rank 16 on ChatGLM-6B and ChatGLM2, 2 epochs, in liucongg/ChatGLM-Finetuning; between ChatGLM3's
    lora.yaml (5e-5) and the LoRA run on ADGEN of ChatGLM-6B's ptuning/README (5e-4).
    Source: https://github.com/liucongg/ChatGLM-Finetuning README."""
    lr_source: ClassVar[str] = (
        "liucongg/ChatGLM-Finetuning; ChatGLM3's lora.yaml has 5e-5, the ADGEN run 5e-4"
    )
    name: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, le=MAX_SIZE)
    """Rank of the two matrices added to each target."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(r) instead, for high ranks (Kalajdzievski 2023,
    arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Learn the length of each weight row separately from its direction (Liu et al. 2024,
    arxiv.org/abs/2402.09353)."""


class AdaLora(LowRank):
    """Low-rank adapters with adaptive ranks: each target starts with rank `init_r`, and the least important
    ranks are pruned until the mean is `target_r` (Zhang et al. 2023, arxiv.org/abs/2303.10512). The update's
    scale stays alpha / init_r.

    12 and 8 are PEFT's defaults: PEFT's AdaLoRA ignores an `r`, so a script that sets one trains with these.
    """

    default_lr: ClassVar[float] = 5e-4
    """The authors' rate for writing text (XSum, with ranks 12 -> 8 and alpha 32 too); for classification they
    go to 1e-3 and beyond. Source: https://github.com/QingruZhang/AdaLoRA, NLG_QA/scripts/run_bart_xsum.sh."""
    lr_source: ClassVar[str] = "QingruZhang/AdaLoRA, run_bart_xsum.sh"
    depends_on_length: ClassVar[bool] = True
    name: Literal["adalora"] = "adalora"
    init_r: int = Field(12, ge=2, le=MAX_SIZE)
    """Rank of every target at the start."""
    target_r: int = Field(8, ge=1, le=MAX_SIZE)
    """Mean rank of the targets at the end."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps before the first pruning; empty: a tenth of the run, as in PEFT's documentation."""
    final_steps: int | None = Field(None, ge=0)
    """Steps at the end with fixed ranks, from which the best checkpoint is chosen; empty: a fifth of the run,
    also as in PEFT's documentation. Before them, the sum of ranks falls on a cubic curve, as in the paper."""
    prune_every: int | None = Field(None, ge=1)
    """Steps between two prunings; until the ranks are fixed, a pruned rank may come back. Empty: a hundredth
    of the run."""
    orthogonality: float = Field(0.5, ge=0, le=MAX_RATE)
    """Weight of the penalty in the loss that keeps the vectors of a target orthogonal (0.5: PEFT's default);
    the logged loss does not include it."""

    @model_validator(mode="after")
    def _prunes(self) -> "AdaLora":
        if self.target_r >= self.init_r:
            raise SettingError(
                f"target_r {self.target_r} is not below init_r {self.init_r}: nothing to prune",
                hint=f"method.target_r={self.init_r // 2 or 1}, or a larger method.init_r; "
                "method=lora keeps the rank that it begins with",
            )
        return self


class Ptuning(MethodSettings):
    """P-Tuning v2: learned keys and values in front of every layer's own (Liu et al. 2021,
    arxiv.org/abs/2110.07602), as the official PrefixEncoder makes them.
    """

    kept: ClassVar[TrainedPart] = TrainedPart.PREFIX
    default_lr: ClassVar[float] = 2e-2
    """The official scripts'; for conversations (train_chat.sh) they have 1e-2.
    Source: https://github.com/THUDM/ChatGLM2-6B/blob/main/ptuning/train.sh."""
    lr_source: ClassVar[str] = "ChatGLM-6B's and ChatGLM2-6B's ptuning/train.sh; train_chat.sh has 1e-2"
    name: Literal["ptuning"] = "ptuning"
    num_prefix_tokens: int = Field(128, ge=1, le=MAX_SIZE)
    """Length of the prefix (the official scripts' pre_seq_len)."""
    projection: bool = False
    """Compute the prefix from embeddings with a two-layer network (the official prefix_projection)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the prefix while training."""


_Method = Full | Freeze | Lora | AdaLora | Ptuning
METHOD_SETTINGS: MutableMapping[str, type[MethodSettings]] = by_name(_Method)
"""The settings type of each method, by its name."""
Method = Annotated[_Method, OneOf(METHOD_SETTINGS)]
