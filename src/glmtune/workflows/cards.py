"""The card of a checkpoint: facts of the base taken before training, and the tuned model's probe logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.adapters.digest import hash_tokenizer, hash_weights
from glmtune.adapters.probe import encode_probe, last_logits, take_probe
from glmtune.adapters.proof import name_computing, name_dtype
from glmtune.adapters.store import stored_tensors
from glmtune.families import require_template
from glmtune.locations import Location
from glmtune.models.fingerprint import Fingerprint, fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Recipe
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Untrained:
    """Facts of the base, taken before training changes it."""

    fingerprint: Fingerprint
    dtype: str
    """Type that the weights are held in, by torch's name."""
    computing: str
    """Type that the model computes in outside of autocast, by torch's name."""
    probe_ids: list[int]
    """Prompt of the probe: a fixed text whose logits show what training changed."""
    logits: Tensor
    """Logits at the probe's last token, (V,)."""
    parent: Mapping[str, str]
    """Path and SHA-256 of the adapter or tuned model that training goes on from; empty without one."""


def look_at_base(model: CausalLM, location: Location, tokenizer: Tokenizer) -> Untrained:
    """Take the facts of the base that a run's cards keep: freeze and full change its weights in place."""
    ids = encode_probe(tokenizer)
    logits = last_logits(model, ids)
    parent: dict[str, str] = {}
    base_fingerprint, dtype = fingerprint(location.folder), name_dtype(model)
    if location.adapter or location.card:
        digest = location.card.weights_sha256 if location.card else ""
        if not digest and location.adapter:  # PEFT's adapters have no card
            digest = hash_weights(stored_tensors(location.adapter))
        parent = {"path": str(location.trained.resolve()), "weights_sha256": digest}
    return Untrained(base_fingerprint, dtype, name_computing(model), ids, logits, parent)


def write_card(
    recipe: Recipe,
    location: Location,
    base: Untrained,
    tokenizer: Tokenizer,
    model: CausalLM,
    *,
    row_hashes: Mapping[str, str],
    step: int,
) -> Card:
    """Return the card of a run's model at a step, for the checkpoint that is about to be saved."""
    data = recipe.data
    return Card(
        base=location.name,
        base_revision=location.revision,
        template=require_template(tokenizer.template, tokenizer.vocab_file),
        method=recipe.method.model_dump(mode="json"),
        system=data.system,
        source_prefix=data.source_prefix,
        quant=recipe.quant,
        glmtune_version=version("glmtune"),
        family=base.fingerprint.family,
        family_revision=base.fingerprint.revision,
        fingerprint={"config": base.fingerprint.config, "weights": base.fingerprint.weights},
        stop_ids=tokenizer.stop_ids,
        tokenizer_sha256=hash_tokenizer(tokenizer),
        dtype=base.dtype,
        computing=base.computing,
        limits=data.model_dump(include={"max_tokens", "max_source_tokens", "max_target_tokens"}),
        data=row_hashes,
        step=step,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
        parent=base.parent,
        probe=take_probe(base.probe_ids, base.logits, last_logits(model, base.probe_ids)),
    )
