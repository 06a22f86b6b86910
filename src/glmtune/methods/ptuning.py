"""P-Tuning v2: train a prefix of keys and values for each layer (`models.prefix`), and nothing else."""

from typing import Any

from glmtune.families import name_family
from glmtune.models.protocol import CausalLM
from glmtune.possible import require_possible
from glmtune.recipe.method import Ptuning


def apply_ptuning(model: CausalLM, settings: Ptuning) -> Any:
    """Freeze the model and give it a new prefix, in place of one that it has.

    Raises ConfigError for a model of transformers' own class, which takes no prefix.
    """
    require_possible(name_family(model.config.model_type), "method=ptuning", "method.name: ptuning")
    model.requires_grad_(False)
    model.attach_prefix(settings.num_prefix_tokens, projection=settings.projection, dropout=settings.dropout)
    return model
