"""The card of a checkpoint: what is known of the base before training, and what the tuned model answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.adapters.digest import hash_tokenizer, hash_weights
from glmtune.adapters.probe import encode_probe, last_logits, take_probe
from glmtune.adapters.proof import name_dtype
from glmtune.adapters.store import stored_tensors
from glmtune.families import require_template
from glmtune.locations import Location
from glmtune.models.fingerprint import Fingerprint, fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Recipe
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Untrained:
    """The base before anything was changed in it."""

    fingerprint: Fingerprint
    dtype: str
    """Type of its weights, by torch's name."""
    probe_ids: list[int]
    logits: Tensor
    """At the probe's end, (V,)."""
    parent: Mapping[str, str]
    """What is gone on from, if that is no untrained model."""


def look_at_base(model: CausalLM, location: Location, tokenizer: Tokenizer) -> Untrained:
    """What the cards of a run say of its base: once freeze or full has begun, it is gone."""
    ids = encode_probe(tokenizer)
    logits = last_logits(model, ids)
    return Untrained(fingerprint(location.folder), name_dtype(model), ids, logits, _parent_facts(location))


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
    """The card of a run's model as it stands."""
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
        limits=data.model_dump(include={"max_tokens", "max_source_tokens", "max_target_tokens"}),
        data=row_hashes,
        step=step,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
        parent=base.parent,
        probe=take_probe(base.probe_ids, base.logits, last_logits(model, base.probe_ids)),
    )


def _parent_facts(location: Location) -> dict[str, str]:
    """What a card says of what its run went on from: where it lay, and the hash of its weights."""
    if not (location.adapter or location.card):
        return {}
    known = location.card.weights_sha256 if location.card else ""
    found = known or (hash_weights(stored_tensors(location.adapter)) if location.adapter else "")
    return {"path": str(location.trained.resolve()), "weights_sha256": found}
