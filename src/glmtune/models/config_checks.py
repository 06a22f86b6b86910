"""Rules for the values in config.json and generation_config.json: one rule a key, for every family.

A limit is about ten times the largest published GLM's value, so that a wrong number is an error that names
its key and not a model that fills the memory.
Source of the largest: huggingface.co/zai-org, the config.json of GLM-4.5 (92 layers, 160 experts, 96 heads),
GLM-4-32B-0414 (hidden size 6,144, feed-forward 23,040), GLM-4-9B (vocabulary 151,552), glm-4-9b-chat-1m.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError

from glmtune.errors import CheckpointError, ConfigError, first_line
from glmtune.recipe.base import MAX_SIZE
from glmtune.rules import (
    OBJECT,
    SWITCH,
    SWITCH_OR_NULL,
    TEXT,
    TEXTS,
    Rule,
    integer,
    is_texts,
    is_within,
    number,
)
from glmtune.values import shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PUBLISHED = "take config.json from the published folder again"
"""Hint for a config that no published folder has."""


_ID = integer(0, 2_000_000, may_be_null=True)
_IDS = Rule(
    "a token's id or a list of them",
    lambda value: _ID.is_met(value) or (isinstance(value, list) and all(map(_ID.is_met, value))),
    may_be_null=True,
)
_LABELS = Rule(
    "an object of labels", lambda value: isinstance(value, dict) and len(value) <= 10_000, may_be_null=True
)
_SHARE = number(0, 1, is_above=True, may_be_null=True)
_DROPOUT = Rule("a number from 0 to below 1", lambda v: is_within(v, 0, 1) and v < 1)
_UNSET = Rule("left out: no GLM has it", lambda value: value in (False, 0), may_be_null=True)
_ROPE = "rope_parameters"
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

_ROPE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("rope_type", "type"),
        Rule(f"one of {', '.join(_ROPE_TYPES)}", lambda value: value in _ROPE_TYPES, may_be_null=True),
    ),
    "rope_theta": number(0, 1e12, is_above=True),
    "partial_rotary_factor": _SHARE,
    "factor": number(0, 1e6, is_above=True),
    "original_max_position_embeddings": integer(1, 2**30, may_be_null=True),
    **dict.fromkeys(
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
         "high_freq_factor"),
        number(0, 1e6, may_be_null=True),
    ),
    "truncate": SWITCH,
    **dict.fromkeys(
        ("short_factor", "long_factor"),
        Rule(
            "a list of numbers",
            lambda v: isinstance(v, list) and all(is_within(n, 0, 1e6, is_above=True) for n in v),
        ),
    ),
}  # fmt: skip
"""Rules for `rope_parameters` and `rope_scaling`, the rotary settings; any other key in them is refused."""

CONFIG_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("num_layers", "num_hidden_layers"), integer(1, 1_000)),
    "hidden_size": integer(1, 65_536),
    **dict.fromkeys(
        ("ffn_hidden_size", "inner_hidden_size", "intermediate_size", "moe_intermediate_size"),
        integer(1, 262_144),
    ),
    **dict.fromkeys(("vocab_size", "padded_vocab_size"), integer(1, 2_000_000)),
    "num_attention_heads": integer(1, 1_024),
    "multi_query_group_num": integer(1, 1_024),
    "num_key_value_heads": integer(1, 1_024, may_be_null=True),
    "kv_channels": integer(1, 2_048),
    "head_dim": integer(1, 2_048, may_be_null=True),
    **dict.fromkeys(("seq_length", "max_sequence_length", "max_position_embeddings"), integer(1, 2**30)),
    "n_routed_experts": integer(1, 2_048),
    "num_local_experts": integer(1, 2_048),
    "num_experts_per_tok": integer(1, 2_048),
    **dict.fromkeys(("n_group", "topk_group"), integer(1, 2_048)),
    "n_shared_experts": integer(1, 64),
    "first_k_dense_replace": integer(0, 1_000),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), integer(0, 64)),
    "pre_seq_len": integer(0, MAX_SIZE, may_be_null=True),
    **dict.fromkeys(("layernorm_epsilon", "layer_norm_eps", "rms_norm_eps"), number(0, 1, is_above=True)),
    "rope_ratio": number(0, 1e6, is_above=True),
    "rope_theta": number(0, 1e12, is_above=True),
    "partial_rotary_factor": _SHARE,
    "routed_scaling_factor": number(0, 1e6, is_above=True),
    "initializer_range": number(0, 1e3),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), _DROPOUT),
    "quantization_bit": Rule(
        "8 or 4, as official folders say, or 0",
        lambda value: type(value) is int and value in (0, 4, 8),
        may_be_null=True,
    ),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id", "sep_token_id"), _ID),
    "eos_token_id": _IDS,
    **dict.fromkeys(
        ("use_cache", "tie_word_embeddings", "add_qkv_bias", "attention_bias", "prefix_projection",
         "position_encoding_2d", "norm_topk_prob", "use_qk_norm", "output_attentions", "output_hidden_states",
         "output_router_logits", "apply_query_key_layer_scaling", "attention_softmax_in_fp32",
         "bias_dropout_fusion", "original_rope"),
        SWITCH,
    ),
    **dict.fromkeys(("return_dict", "use_return_dict"), Rule("true", lambda value: value is True)),
    **dict.fromkeys(
        ("model_type", "_name_or_path", "name_or_path", "hidden_act", "transformers_version", "template",
         "attn_implementation", "_attn_implementation", "rope_scaling_by", "problem_type", "_commit_hash"),
        TEXT,
    ),
    **dict.fromkeys(
        ("torch_dtype", "dtype"),
        Rule(
            "float16, bfloat16 or float32",
            lambda value: str(value).removeprefix("torch.") in ("float16", "bfloat16", "float32", "float64"),
            may_be_null=True,
        ),
    ),
    "architectures": TEXTS,
    "layer_types": Rule(
        "a list of full_attention alone",
        lambda value: is_texts(value) and set(value) <= {"full_attention"},
        may_be_null=True,
    ),
    **dict.fromkeys(("auto_map", _ROPE, "rope_scaling"), OBJECT),
    "quantization_config": Rule(
        "an object with a quant_method",
        lambda value: isinstance(value, dict) and isinstance(value.get("quant_method"), str),
        may_be_null=True,
    ),
    "id2label": Rule(
        "an object of numbered labels",
        lambda value: _LABELS.is_met(value) and all(str(key).isdecimal() for key in value),
        may_be_null=True,
    ),
    "label2id": _LABELS,
    "num_labels": integer(0, 10_000, may_be_null=True),
    **dict.fromkeys(
        ("text_config", "vision_config", "decoder", "encoder", "is_encoder_decoder", "is_decoder",
         "add_cross_attention", "per_layer_config", "sliding_window", "attention_chunk_size",
         "attribute_map", "sub_configs", "base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan",
         "base_model_fsdp_plan", "keys_to_ignore_at_inference", "experts_implementation",
         "_experts_implementation", "chunk_size_feed_forward", "torchscript"),
        _UNSET,
    ),
}  # fmt: skip
"""Rules for config.json. A key without a rule is not read here, and kept as it is."""

_LAYERS = ("num_layers", "num_hidden_layers")
_EXPERTS = ("n_routed_experts", "num_local_experts")
_MOST_EXPERTS = 10 * 92 * 160
"""The most experts that a config may have in all layers together."""
_COUNTED = (
    ("num_hidden_layers", re.compile(r"\blayers\.(\d+)\."), 100),
    ("n_routed_experts", re.compile(r"\bexperts\.(\d+)\."), 200),
)
"""Config keys that tensor names count too: key, pattern, and the number below which no comparison is made."""

GENERATION_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id"), _ID),
    "eos_token_id": _IDS,
    **dict.fromkeys(
        ("max_length", "max_new_tokens", "min_length", "min_new_tokens"), integer(0, 2**30, may_be_null=True)
    ),
    **dict.fromkeys(("num_beams", "num_return_sequences"), integer(1, 1_024, may_be_null=True)),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size"), integer(0, 2_000_000, may_be_null=True)),
    "temperature": number(0, 1e6, may_be_null=True),
    **dict.fromkeys(
        ("top_p", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"), number(0, 1, may_be_null=True)
    ),
    "repetition_penalty": number(0, 1e6, is_above=True, may_be_null=True),
    "length_penalty": number(-1e6, 1e6, may_be_null=True),
    **dict.fromkeys(
        ("do_sample", "use_cache", "output_attentions", "output_hidden_states", "output_scores",
         "output_logits", "return_dict_in_generate", "remove_invalid_values", "renormalize_logits",
         "_from_model_config"),
        SWITCH_OR_NULL,
    ),
    "transformers_version": TEXT,
}  # fmt: skip
"""Rules for generation_config.json."""


def adopt_aliases(config: "PreTrainedConfig", settings: dict[str, object]) -> None:
    """Move settings under transformers' names from `settings` to the config's official fields.

    Raises ConfigError where both names are set and differ.
    """
    for alias in config.attribute_map.keys() & settings.keys():
        value, official = settings.pop(alias), config.attribute_map[alias]
        stated = getattr(config, official)
        if value is None or value == stated:
            continue
        if stated != getattr(type(config), official):
            if alias == "vocab_size":  # the official ChatGLM2 code reads padded_vocab_size only
                continue
            raise ConfigError(
                f"config.json: {alias} = {value!r} contradicts {official} = {stated!r}",
                hint=f"two names of one setting: leave {alias} out, or {PUBLISHED}",
            )
        setattr(config, official, value)


def check_kind(config: object, kind: type) -> None:
    """Raise ConfigError for another family's config: two families have the `model_type` chatglm."""
    if not isinstance(config, kind):
        raise ConfigError(
            f"config.json: a {type(config).__name__}, and this model's class takes a {kind.__name__}",
            hint="AutoModelForCausalLM and load_model choose the class by the folder",
        )


def check_content(
    content: Mapping[str, Any],
    rules: Mapping[str, Rule] = CONFIG_RULES,
    *,
    where: str | Path = "config.json",
    kind: type = object,
) -> None:
    """Raise ConfigError for the first key whose value breaks its rule, or that would hide a method of `kind`.

    kind: the class that takes the content as attributes.
    """
    hint = PUBLISHED if rules is not GENERATION_RULES else PUBLISHED.replace("config", "generation_config")
    for key, value in content.items():
        rule = rules.get(key)
        if rule and not rule.allows(value):
            raise ConfigError(f"{where}: {key} must be {rule.words}, got {shown(value)}", hint=hint)
        if not rule and (key.startswith("__") or callable(getattr(kind, key, None))):
            raise ConfigError(f"{where}: {key[:50]} is no key of such a file", hint=hint)
    if rules is not CONFIG_RULES:
        return
    layers, experts = (max(content.get(key) or 1 for key in keys) for keys in (_LAYERS, _EXPERTS))
    if layers * experts > _MOST_EXPERTS:
        raise ConfigError(
            f"{where}: {layers:,} layers (num_hidden_layers) of {experts:,} experts (n_routed_experts) are "
            f"too many: at most {_MOST_EXPERTS:,} experts in all",
            hint=hint,
        )
    for name in (_ROPE, "rope_scaling"):
        stated = {key: _ROPE_RULES.get(key, _UNSET) for key in content.get(name) or {}}
        check_content(content.get(name) or {}, stated, where=f"{where}: {name}")


def refuse_quantised(content: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError for the config.json of weights that another program quantised (GPTQ, AWQ ...)."""
    stated = content.get("quantization_config")
    if isinstance(stated, dict) and stated:
        raise CheckpointError(
            f"{where}: pre-quantised weights ({stated.get('quant_method')}) cannot be opened",
            hint="open the original, unquantised folder of this model",
        )


def require_stored(config: "PreTrainedConfig", names: Iterable[str], where: str | Path) -> None:
    """Raise CheckpointError where config.json has many more layers or experts than the stored names.

    A smaller difference is left to the check of the tensors, which names the first that is missing.
    """
    names = list(names)
    for key, pattern, few in _COUNTED:
        stated = getattr(config, key, 0)  # building so many modules could take minutes
        held = 1 + max((int(found[1]) for name in names if (found := pattern.search(name))), default=-1)
        if names and stated > max(held, few):
            raise CheckpointError(
                f"{where}: {config.attribute_map.get(key, key)} = {stated:,}, and the files hold {held:,}",
                hint="config.json and weights must be of the same model, and complete",
            )


_FIELD = re.compile(r"for field '(\w+)'")


@contextmanager
def explain_config(where: str | Path) -> Iterator[None]:
    """Turn whatever transformers raises over a config into a CheckpointError with file and key.

    Our own errors, raised where only the content is known, get the file's path too.
    """
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        if not str(error).startswith("config.json"):
            raise
        raise type(error)(f"{where}{str(error).removeprefix('config.json')}", hint=error.hint) from None
    except StrictDataclassError as error:
        field = _FIELD.search(str(error))
        key = f": {field[1]}" if field and isinstance(error, StrictDataclassFieldValidationError) else ""
        # a failed union lists the error of each member behind ". Errors: "
        reason = str(error.__cause__ or error).split(". Errors: ")[0]
        reason = reason.removeprefix(f"Field {field[1]!r} ") if field else reason
        raise CheckpointError(f"{where}{key}: {reason}", hint=PUBLISHED) from error
    except (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError,
        RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        problem = f"unknown {error}" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"{where}: makes no model: {problem}", hint=PUBLISHED) from error
