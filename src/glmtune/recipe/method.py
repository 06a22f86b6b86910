"""The settings of each fine-tuning method. This module imports no torch."""

from collections.abc import MutableMapping
from enum import Enum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from glmtune.recipe.base import MAX_RATE, MAX_SIZE, OneOf, SettingError, Settings, by_name


class TrainedPart(Enum):
    """What a method trains, and so how that is kept, put on its base again and merged into it."""

    MODEL = "the whole model, as a folder that stands alone"
    WEIGHTS = "some of the base's own weights, by their names"
    PREFIX = "learned keys and values in front of a text"
    LAYERS = "an adapter within the base's layers, in PEFT's layout"


class MethodSettings(Settings):
    """What every method has: the learning rate it learns at where `train.lr` is empty, what it trains."""

    kept: ClassVar[TrainedPart]
    """What is trained."""
    default_lr: ClassVar[float]
    """Peak rate of AdamW, for every family: where the published rates of families differ, the scripts do."""
    lr_source: ClassVar[str]
    """Where that rate is from, as the run's log says it."""


class Full(MethodSettings):
    """Train every weight."""

    kept: ClassVar[TrainedPart] = TrainedPart.MODEL
    default_lr: ClassVar[float] = 5e-5
    """The more careful of two published ones: ChatGLM-6B's and ChatGLM2's ds_train_finetune.sh have 1e-4.
    Source: https://github.com/THUDM/ChatGLM3/blob/main/finetune_demo/configs/sft.yaml."""
    lr_source: ClassVar[str] = "ChatGLM3's sft.yaml"
    name: Literal["full"] = "full"


class Freeze(MethodSettings):
    """Train some of the model's own weights, the last layers or those named, and leave the others as they
    are.
    """

    kept: ClassVar[TrainedPart] = TrainedPart.WEIGHTS
    default_lr: ClassVar[float] = 1e-4
    """Four of ChatGLM-6B's and ChatGLM2's layers, 2 epochs: "no serious catastrophic forgetting".
    Source: https://github.com/liucongg/ChatGLM-Finetuning README."""
    lr_source: ClassVar[str] = "liucongg/ChatGLM-Finetuning"
    name: Literal["freeze"] = "freeze"
    num_layers: int | None = Field(None, ge=1)
    """Train so many last layers; empty: 3, unless `patterns` is set."""
    patterns: tuple[str, ...] | None = Field(None, min_length=1)
    """Train the parameters whose names match one of these, `*` standing for anything, as in
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
    """What the adapters of low rank share."""

    kept: ClassVar[TrainedPart] = TrainedPart.LAYERS
    alpha: float = Field(32, gt=0, le=MAX_RATE)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the linear layers to adapt; empty takes the family's default, `query_key_value`."""


class Lora(LowRank):
    """Low-rank adapters beside frozen linear layers (Hu et al. 2021, arxiv.org/abs/2106.09685)."""

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
    """Learn the length of each row of the weight apart from its direction (Liu et al. 2024,
    arxiv.org/abs/2402.09353)."""


class AdaLora(LowRank):
    """Adapters whose ranks adapt: starts with `init_r` everywhere and prunes to `target_r` on average, where
    it matters least (Zhang et al. 2023, arxiv.org/abs/2303.10512). The update's scale stays alpha / init_r.

    12 and 8 are PEFT's defaults: a script that gives PEFT's AdaLoRA an `r` trains with these, `r` is ignored.
    """

    default_lr: ClassVar[float] = 5e-4
    """The authors' rate for writing text (XSum, with ranks 12 -> 8 and alpha 32 too); for classification they
    go to 1e-3 and beyond. Source: https://github.com/QingruZhang/AdaLoRA, NLG_QA/scripts/run_bart_xsum.sh."""
    lr_source: ClassVar[str] = "QingruZhang/AdaLoRA, run_bart_xsum.sh"
    name: Literal["adalora"] = "adalora"
    init_r: int = Field(12, ge=2, le=MAX_SIZE)
    """Rank of every target at the start."""
    target_r: int = Field(8, ge=1, le=MAX_SIZE)
    """Mean rank of the targets at the end."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps before the first pruning; empty: a tenth of the run, as PEFT's documentation has it."""
    final_steps: int | None = Field(None, ge=0)
    """Steps at the end with the ranks settled, of which the best checkpoint is; empty: a fifth of the run,
    again as PEFT's documentation has it. Before, the sum of ranks falls on a cubic curve, as in the paper."""
    prune_every: int | None = Field(None, ge=1)
    """Steps between two prunings; what is pruned may come back until the ranks settle. Empty: a hundredth
    of the run."""
    orthogonality: float = Field(0.5, ge=0, le=MAX_RATE)
    """Weight in the loss of the penalty that keeps the vectors of a target orthogonal (0.5: PEFT's default;
    the loss that is logged is without it)."""

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
    """Make the prefix by a two-layer network from embeddings (the official prefix_projection)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the prefix while training."""


_Method = Full | Freeze | Lora | AdaLora | Ptuning
METHOD_SETTINGS: MutableMapping[str, type[MethodSettings]] = by_name(_Method)
"""The settings type of each method, by its name."""
Method = Annotated[_Method, OneOf(METHOD_SETTINGS)]
