"""Open what a path means: a model folder, a run, an adapter. The rest of the program takes any of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import CheckpointError, ConfigError
from glmtune.family import FAMILIES, identify, require_own_model, require_template
from glmtune.files import read_json
from glmtune.log import tell
from glmtune.methods.adapter import ADAPTER_FILE, Card, load_adapter, read_card
from glmtune.models import load_base, load_in_transformers
from glmtune.models.checkpoint import read_config
from glmtune.models.upstream import read_upstream_config
from glmtune.tokenizers import check_fits
from glmtune.tokenizers import load_tokenizer as load_folder_tokenizer

RECIPE_FILE = "recipe.yaml"

BUNDLED = {"glm-tiny": Path(__file__).parent / "glm_tiny"}
"""Models that come with the package, by the name that stands for their folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a path means."""

    base: Path
    """Folder of the model."""
    adapter: Path | None = None
    card: Card | None = None
    run: Path | None = None
    """The run the path is, or lies in."""

    @property
    def is_bundled(self) -> bool:
        """Whether the model came with the package: it is then known by its name, wherever that lies."""
        return self.base in BUNDLED.values()

    @property
    def template(self) -> str | None:
        """The chat format it was trained with, if that is known."""
        return self.card.template if self.card else None


def resolve(path: str | Path, *, base: str | Path | None = None) -> Place:
    """Tell a model, run or adapter folder and find the base of the last two.

    A run means its best checkpoint by evaluation loss. `base` overrides the recorded place of the base.
    Raises `CheckpointError`.
    """
    folder = find_folder(path)
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: no such folder", hint="give the folder of a model, a run (runs/...) or an adapter"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: a file, not a folder", hint="give the folder it lies in")
    run = folder if (folder / RECIPE_FILE).exists() else None
    if run:
        folder = _best_checkpoint(run)
    elif (folder.resolve().parent.parent / RECIPE_FILE).exists():
        run = folder.resolve().parent.parent
    card = read_card(folder)
    if (folder / ADAPTER_FILE).exists():
        return Place(_base_of(folder, card, base), folder, card, run)
    if (folder / "config.json").exists():
        if base is not None:
            raise ConfigError(f"{path}: not an adapter, so it goes on no base", hint="open it alone")
        return Place(folder, None, card, run)
    raise CheckpointError(
        f"{folder}: neither a model (config.json), a run ({RECIPE_FILE}) nor an adapter ({ADAPTER_FILE})",
        hint="official P-Tuning folders are not supported yet"
        if list(folder.glob("*.bin"))
        else "check the path",
    )


def find_folder(path: str | Path) -> Path:
    """The folder that a path means: a bundled model by its name, unless a folder of that name is here."""
    folder = Path(path).expanduser()
    return folder if folder.exists() else BUNDLED.get(str(path), folder)


def _best_checkpoint(run: Path) -> Path:
    for name in ("best", "last"):
        if (run / name).exists():
            return (run / name).resolve()
    raise CheckpointError(f"{run}: this run has no checkpoint yet", hint="train it first: glmtune train")


def _base_of(adapter: Path, card: Card | None, base: str | Path | None) -> Path:
    if base is not None:
        return find_folder(base)
    recorded = card.base if card else read_json(adapter / ADAPTER_FILE).get("base_model_name_or_path")
    if recorded and (find_folder(recorded) / "config.json").exists():
        return find_folder(recorded)
    raise CheckpointError(
        f"{adapter}: its base model is not at {recorded or '(no place recorded)'}",
        hint="name the base's folder: --base, or base=, or in Python load_model(base, adapter=...)",
    )


def load_model(
    path: str | Path,
    adapter: str | Path | None = None,
    quant: str | None = None,
    template: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
) -> Any:
    """Open a model folder, run or adapter, in evaluation mode.

    `adapter` puts an adapter folder on the model at `path`. dtype "auto" is the stored type on a GPU; on a
    CPU bf16 for half-precision checkpoints, else fp32. `template` says which chat format a ChatGLM2/3
    folder has where its files do not. Raises `CheckpointError` or `ConfigError`.
    """
    place = resolve(path)
    if quant is not None:
        require_own_model(identify(place.base, template or place.template).family, f"quant: {quant!r}")
    _refuse_quant(quant)
    if adapter is not None:
        if place.adapter:
            raise ConfigError(
                f"{path}: already an adapter; two cannot be combined", hint="give the base model"
            )
        place = resolve(adapter, base=place.base)
    return open_place(place, template=template, dtype=dtype, device=device).eval()


def _refuse_quant(quant: str | None) -> None:
    later = ("int8", "int4", "nf4")
    if quant in later:
        raise ConfigError(f"quant: {quant!r} is not supported yet", hint="leave it out: quant=None")
    if quant is not None:
        raise ConfigError(f"quant: unknown {quant!r}", hint=f"None; later versions: {', '.join(later)}")


def open_place(place: Place, *, template: str | None, dtype: str | torch.dtype, device: str) -> Any:
    """The model of a place, with its adapter on it."""
    known = identify(place.base, template or place.template)
    load = load_in_transformers if FAMILIES[known.family].is_in_transformers else load_base
    model = load(place.base, dtype=dtype, device=device, template=known.template)
    first = next(model.parameters())
    what = f"{known.template or known.family} ({known.rule})"
    tell(f"{place.base}: {what}, {str(first.dtype).removeprefix('torch.')} on {first.device}")
    if place.adapter:
        model = load_adapter(model, place.adapter)
        tell(f"{place.adapter}: adapter loaded")
    return model


def load_tokenizer(path: str | Path, template: str | None = None) -> Any:
    """The tokenizer of a model, run or adapter folder. Raises `CheckpointError` or `ConfigError`."""
    place = resolve(path)
    return load_folder_tokenizer(place.base, template or place.template)


def open_tokenizer(place: Place, *, template: str | None) -> Any:
    """The tokenizer of a place, for encoding chats: its template is known, and it fits the model."""
    tokenizer = load_folder_tokenizer(place.base, template or place.template)
    require_template(tokenizer.template, str(place.base))
    family = FAMILIES[identify(place.base, tokenizer.template).family]
    config = (read_upstream_config if family.is_in_transformers else read_config)(place.base)
    check_fits(tokenizer, config.vocab_size, config.eos_token_id, place=str(place.base))
    return tokenizer
