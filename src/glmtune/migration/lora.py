"""Read a LoRA or AdaLoRA folder of any version of PEFT, under the names of the version installed here.

PEFT versions, and trainers that save adapters themselves, differ in file names, tensor names and settings.
Source: github.com/huggingface/peft, `get_peft_model_state_dict` and the releases'
config classes; issues/2275 there (unknown settings).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.digest import update_norm
from glmtune.adapters.factors import START
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.peft_settings import KINDS, find_unknown, require_supported
from glmtune.adapters.store import ADAPTER_FILE
from glmtune.errors import CheckpointError
from glmtune.models.shards import read_shard

# the first that is there is read; the last two are of trainers that save for themselves
FILES = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
# `.lora_A.weight`, `.lora_A.default.weight` (with the adapter's name), `.lora_embedding_A`: group 1 is the
# factor, 2 the adapter's name, 3 the suffix
_PART = re.compile(r"\.(lora_[A-Za-z_]+?)(?:\.(?!weight$|bias$)([^.]+))?(\.weight|\.bias)?$")
_DOWN = re.compile(r"\.lora_(embedding_)?A")
# settings with which an adapter is more than two factors for each layer
_MORE = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters")
_REFUSED = {
    "PREFIX_TUNING": "PEFT's own prefix shifts every position: the model computes something else with it",
    "P_TUNING": "PEFT's virtual tokens are no prefix of P-Tuning v2",
    "PROMPT_TUNING": "PEFT's virtual tokens are no prefix of P-Tuning v2",
}


@dataclass
class OldLora:
    """An adapter read from a folder: settings and tensors under the names of the installed PEFT."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    found: list[str] = field(default_factory=list)
    """Facts for the report, a sentence each."""
    mended: list[str] = field(default_factory=list)
    """Changes for the report, a sentence each."""
    lost: dict[str, str] = field(default_factory=dict)
    """Settings that cannot be carried over, with the reason."""

    @property
    def kind(self) -> str:
        """PEFT's `peft_type`: LORA or ADALORA."""
        return str(self.config["peft_type"])

    @property
    def targets(self) -> list[str]:
        """Full names of the adapted layers, sorted."""
        names = {_PART.sub("", name) for name in self.tensors if _DOWN.search(name)}
        return sorted(name.removeprefix(START) for name in names)

    @property
    def is_plain(self) -> bool:
        """True if the adapter is nothing but factors A and B of linear layers."""
        return not (
            any(self.config.get(key) for key in _MORE)
            or self.config.get("bias", "none") != "none"
            or any("lora_embedding_" in name for name in self.tensors)
        )

    def method(self) -> dict[str, Any]:
        """Return the settings of glmtune's method, for the card; empty if no valid ones fit the adapter."""
        config = self.config
        shared: dict[str, Any] = {
            "alpha": float(config.get("lora_alpha", 8)),
            "dropout": float(config.get("lora_dropout", 0)),
        }
        shared["target_modules"] = sorted({name.rpartition(".")[2] for name in self.targets})
        if self.kind == "ADALORA":
            ranks = int(config.get("init_r", 12)), int(config.get("target_r", 8))
            if ranks[1] >= ranks[0]:  # our AdaLoRA refuses to prune upwards
                return {}
            return {"name": "adalora", "init_r": ranks[0], "target_r": ranks[1], **shared}
        switches = {key: bool(config.get(key)) for key in ("use_rslora", "use_dora")}
        return {"name": "lora", "r": int(config.get("r", 8)), **shared, **switches}


def read_lora(folder: Path) -> OldLora:
    """Read the adapter in a folder. Raises CheckpointError if it would compute something else here."""
    config = read_adapter_config(folder)
    kind = str(config.get("peft_type", "")).upper()
    if kind not in KINDS:
        why = _REFUSED.get(kind, "this version has no such method")
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: peft_type {kind or 'is missing'}: {why}",
            hint=f"adapters of these types can be migrated: {', '.join(KINDS)}",
        )
    old = OldLora({**config, "peft_type": kind}, {})
    require_supported(folder, old.config, are_unknown_kept=True)
    if config.get("enable_lora"):
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: enable_lora {config['enable_lora']}: a LoRA of parts of a layer, "
            "as PEFT 0.2 and earlier made it",
            hint="merge it into its base with that version of PEFT, then use the merged model",
        )
    _read_tensors(old, folder)
    _mend_config(old)
    return old


def _read_tensors(old: OldLora, folder: Path) -> None:
    """Read the weights into `old` under PEFT's names; raises CheckpointError for none, or an update of 0."""
    path = next((folder / name for name in FILES if (folder / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{folder}: no weights; looked for {', '.join(FILES)}", hint="copy them too")
    stored = read_shard(path)
    whole = old.config.get("modules_to_save") or []
    renamed = 0
    for name, tensor in stored.items():
        ours = _rename(name, whole, has_biases=old.config.get("bias", "none") != "none")
        if ours is not None:
            old.tensors[ours] = tensor.contiguous()
            renamed += ours != name
    left = len(stored) - len(old.tensors)
    if not old.targets:
        raise CheckpointError(f"{path}: holds no LoRA weights", hint="check the folder: where is lora_A?")
    names = ", ".join(sorted({name.rpartition(".")[2] for name in old.targets}))
    old.found.append(f"{old.kind} on {names}: {len(old.tensors)} tensors in {path.name}")
    if renamed:
        old.mended.append(f"{renamed} tensors have names that today's PEFT does not look for: renamed")
    if left:
        old.mended.append(f"{left} tensors of the base lie beside it: left out")
    # B is 0 before the first step, so an untrained adapter has no update
    if not update_norm(old.tensors):
        raise CheckpointError(
            f"{path}: its update is 0 everywhere, so this adapter changes nothing",
            hint="it was never trained",
        )


def _rename(name: str, whole: list[str], *, has_biases: bool) -> str | None:
    """Return a tensor's name in the installed PEFT's files; None for a tensor of the base.

    `whole` are the layers of `modules_to_save`, which are stored whole.
    """
    factor = _PART.search(name)
    is_own = (has_biases and name.endswith(".bias")) or ".token_adapter." in name
    if factor is None and not is_own and not any(f".{part}." in f".{name}" for part in whole):
        return None
    # `module.` is DistributedDataParallel's
    name = START + name.removeprefix("module.").removeprefix(START)
    if factor is not None:
        return _PART.sub(lambda part: f".{part[1]}{part[3] or ''}", name)
    return re.sub(r"\.(?:modules_to_save\.[^.]+|original_module)(?=\.)", "", name)


def _mend_config(old: OldLora) -> None:
    """Take out settings that the installed PEFT does not know, and name the layers that have weights."""
    # those with a value first: what is left afterwards is empty and may go without loss
    for key in find_unknown(old.config):
        old.lost[f"{key} {old.config.pop(key)}"] = "a setting that this PEFT does not know"
    for key in find_unknown(old.config, are_empty_too=True):
        del old.config[key]
        old.mended.append(f"{key}: a setting that this PEFT does not know, unused: left out")
    if old.kind == "ADALORA" and "r" in old.config:
        ranks = f"init_r {old.config.get('init_r', 12)} and target_r {old.config.get('target_r', 8)}"
        old.mended.append(f"r {old.config['r']}: PEFT's AdaLoRA ignores it; it was trained with {ranks}")
    # the tensors decide which layers are adapted: a name without weights was never adapted
    named = old.config.get("target_modules")
    if isinstance(named, str) or old.config.get("target_parameters"):
        return
    real = sorted({name.rpartition(".")[2] for name in old.targets})
    missing = [n for n in named or [] if not any(t == n or t.endswith(f".{n}") for t in old.targets)]
    if missing:
        old.mended.append(
            f"target_modules: no weights for {', '.join(missing)}; adapted are {', '.join(real)}"
        )
    if missing or not named:
        old.config["target_modules"] = real
