"""The table of model families, and the rules that identify a folder's family and chat format.

Text files of the folder decide: no code in it is run, and its own path plays no part. ChatGLM2 and ChatGLM3
have the same config keys and tensor names, so their chat formats are told apart by other files.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import read_json_if_there
from glmtune.folder import ModelFolder
from glmtune.signs import (
    GLM4_EPSILON,
    ORIGINAL_GLM_SIGNS,
    V1_SIGNS,
    Config,
    is_chatglm,
    is_glm4,
    is_original_glm,
    is_v1,
    v1_revision,
)
from glmtune.template_rules import (
    from_chat_template,
    from_names,
    from_tokenizer_code,
    glm4_chat_revision,
    read_chat_template,
    reads,
    saved_template,
)
from glmtune.unsupported import UNSUPPORTED_MODELS, name_unsupported_format

VOCABULARY = "tokenizer.model"
"""Vocabulary file of ChatGLM2, ChatGLM3 and GLM-4."""
ICE = "ice_text.model"
"""Vocabulary file of ChatGLM-6B."""
_OPEN: tuple[str, ...] = ("chatglm2", "chatglm3")
"""Chat formats that may stay open: folders of both have the same config keys and tensor names."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The family, revision and chat format of a folder, and the rules that decided them."""

    template: str | None
    """The chat format; None while it is open."""
    rule: str
    """The rule that decided the chat format, in words."""
    family: str
    revision: str
    """The published revision, for a family whose revisions differ in more than weights; else empty."""
    family_rule: str
    """The rule that decided the family and the revision, in words."""


def identify(
    folder: Path | ModelFolder, template: str | None = None, *, rule: str = "the template setting"
) -> Identity:
    """Identify a model's or tokenizer's folder. `template`, if given, decides the chat format, by `rule`.

    Raises CheckpointError for an unknown family, ConfigError for an unknown chat_template or for a
    `template` of another family.
    """
    folder = ModelFolder.of(folder)
    if template is None:
        return folder.once(_identify_all)
    known = identify_family(folder)
    for allowed in FAMILIES[known.family].templates:
        if template == allowed:
            return replace(known, template=allowed, rule=rule)
    # hint: the format that the folder's own files tell, else those of its family
    try:
        own = identify(folder)
    except ConfigError as err:
        hint = err.hint
    else:
        fitting = f"leave template out: {own.rule} tells {own.template}"
        hint = fitting if own.template else _offer(FAMILIES[own.family].templates)
    raise ConfigError(
        f"template: {template!r} is not a chat format of {folder}, which holds a {known.family} model",
        hint=hint,
    )


def tells_format(folder: Path | ModelFolder) -> bool:
    """Return True if a folder's own files tell its chat format."""
    try:
        return identify(folder).template is not None
    except ConfigError:
        return False


def _identify_all(folder: ModelFolder) -> Identity:
    known = identify_family(folder)
    # in order: the surest rule first, what this program saved itself after the published files
    for rule, look in FAMILIES[known.family].rules:
        template = look(folder)
        if template is not None:
            return replace(known, template=template, rule=rule)
    return known


def identify_family(folder: Path | ModelFolder) -> Identity:
    """Identify a folder's family and revision, the chat format left open. Raises CheckpointError."""
    return ModelFolder.of(folder).once(_identify_family)


def _identify_family(folder: ModelFolder) -> Identity:
    if not folder.path.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder", hint="give the folder that holds config.json and tokenizer.model"
        )
    if folder.config:
        family = _family_of_config(folder.path / "config.json", folder.config)
        row = FAMILIES[family]
        revision = row.revision(folder.config)
        rule = f"{row.sign}; {revision}: {row.revision_rules[revision]}" if revision else row.sign
        return Identity(None, row.open_rule, family, revision, rule)
    # a tokenizer's folder: its class tells the family, but ChatGLM-6B's and ChatGLM2's have the same name
    stated = folder.json("tokenizer_config.json")
    tokenizer_class = stated.get("tokenizer_class")
    has_ice_alone = (folder.path / ICE).is_file() and not (folder.path / VOCABULARY).is_file()
    if tokenizer_class == "ChatGLMTokenizer" and (has_ice_alone or "gmask_token" in stated):
        tokenizer_class = f"{tokenizer_class} ({ICE})"
    for family, row in FAMILIES.items():
        if row.tokenizer_class and row.tokenizer_class == tokenizer_class:
            return Identity(None, row.open_rule, family, "", "its tokenizer")
    raise CheckpointError(
        f"{folder}: neither a config.json nor a tokenizer_config.json of a GLM model", hint=_KNOWN
    )


def require_template(template: str | None, where: str) -> str:
    """Return `template`. Raises ConfigError, asking for one, if it is None."""
    if template is not None:
        return template
    raise ConfigError(
        f"{where}: cannot tell which chat format this model speaks, ChatGLM2's or ChatGLM3's",
        hint=_offer(_OPEN),
    )


def context_of(folder: Path | ModelFolder) -> int | None:
    """Return the longest context of a folder's model in tokens; None if its config.json names none.

    Raises CheckpointError for an unknown family.
    """
    folder = ModelFolder.of(folder)
    length = folder.config.get(FAMILIES[identify_family(folder).family].context_key)
    return length if type(length) is int and length > 0 else None


def find_family(model_type: str) -> "Family":
    """Return the first family of a model_type. Families of one model_type share LoRA targets and loader."""
    return next(row for row in FAMILIES.values() if row.model_type == model_type)


def in_transformers() -> tuple[str, ...]:
    """Return the families whose models are transformers' own classes."""
    return tuple(name for name, row in FAMILIES.items() if row.is_in_transformers)


def name_family(model_type: str) -> str:
    """Return the name of the first family of a model_type."""
    return next(name for name, row in FAMILIES.items() if row.model_type == model_type)


def _family_of_config(where: Path, config: Config) -> str:
    # first, as its model_type `glm` would be taken for GLM-4-hf's
    if is_original_glm(config):
        raise CheckpointError(f"{where}: an original GLM model: not supported yet", hint=_KNOWN)
    family = next((name for name, row in FAMILIES.items() if row.matches(config)), None)
    if family is None and str(config.get("model_type")) in UNSUPPORTED_MODELS:
        raise CheckpointError(
            f"{where}: a {UNSUPPORTED_MODELS[config['model_type']]} model "
            f"(model_type {config['model_type']}): not supported yet",
            hint=_KNOWN,
        )
    if family is None:
        types = ", ".join(sorted({repr(row.model_type) for row in FAMILIES.values()}))
        raise CheckpointError(
            f"{where}: model_type is {config.get('model_type')!r}, known are {types}",
            hint=_KNOWN,
        )
    return family


def _offer(templates: tuple[str, ...]) -> str:
    return "say which: " + " or ".join(f"template={name}" for name in templates)


def _base_template(template: str, templates: tuple[str, ...]) -> Callable[[ModelFolder], str | None]:
    """Make a family's last rule: `template` if there is no chat_template, else ConfigError."""

    def look(folder: ModelFolder) -> str | None:
        chat_template = read_chat_template(folder)
        if chat_template in ("", '""'):
            return template
        named = name_unsupported_format(chat_template)
        if named:
            raise ConfigError(
                f"{folder}: its chat_template is that of {named}, which is not supported yet", hint=_KNOWN
            )
        hint = f"if it is an edited one of these, {_offer(templates)}"
        export = read_json_if_there(folder.path / "export.json", is_ours=True)
        if export.get("kind") == "hf":  # glmtune's own export for other programs
            source = str(export.get("source"))
            command = f"glmtune export {shlex.quote(source)} --to merged"
            hint = f"exported for other programs: open {source} itself, or what `{command}` makes of it"
        raise ConfigError(
            f"{folder}: its chat_template is none of the formats that this version knows", hint=hint
        )

    return look


_Rule = tuple[str, Callable[[ModelFolder], str | None]]
"""A rule for the chat format: in words, as `glmtune info` shows it, and as a function."""


@dataclass(frozen=True, slots=True)
class Family:
    """A row of `FAMILIES`: the signs of a family's folder, and facts about the family."""

    templates: tuple[str, ...]
    """Chat formats that folders of the family may have."""
    rules: tuple[_Rule, ...]
    """Rules for the chat format, tried in order."""
    sign: str
    """The sign of the family in config.json, in words."""
    matches: Callable[[Config], bool]
    """The test of `sign` on a config.json."""
    model_type: str = "chatglm"
    revision: Callable[[Config], str] = lambda _: ""
    """Returns the revision told by config.json; empty for a family of one revision."""
    revision_rules: Mapping[str, str] = field(default_factory=dict)
    """The sign of each revision in config.json, in words."""
    context_key: str = "seq_length"
    """Key in config.json of the longest context, in tokens."""
    vocabulary: str = VOCABULARY
    """Name of the tokenizer's vocabulary file."""
    tokenizer_class: str = ""
    """Class in tokenizer_config.json that tells the family of a folder without config.json."""
    lora_targets: tuple[str, ...] = ("query_key_value",)
    """Linear layers that LoRA adapts by default. Source: THUDM/ChatGLM3 finetune_demo/configs/lora.yaml."""
    linear_sets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "attention": ("query_key_value", "dense"),
            "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
        }
    )
    """Linear layers of a block by their part: sets that `method.target_modules` may name."""
    experts: tuple[str, ...] = ()
    """Names of linear layers that PEFT's LoRA takes for routed experts, and so skips.
    Source: github.com/huggingface/peft v0.21.2, utils/transformers_weight_conversion.py."""
    open_rule: str = "nothing in the folder tells ChatGLM2 from ChatGLM3"
    """The `Identity.rule` of a folder whose chat format no rule told, in words."""
    is_in_transformers: bool = False
    """True if the model is transformers' own class and the tokenizer a tokenizer.json."""


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def family_in_transformers(
    model_type: str, templates: tuple[str, ...], rules: tuple[_Rule, ...], base: str
) -> Family:
    """Make the row of a family whose model is transformers' own class.

    `rules` come before the common ones; `base` is the chat format of a folder without chat_template.
    PEFT 0.21 names no LoRA targets for them (TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING in its
    utils/constants.py), so all four attention projections are adapted.
    """
    return Family(
        templates=templates,
        rules=(
            *rules,
            ("the template written when it was saved", saved_template),
            ("that it has no chat_template", _base_template(base, templates)),
        ),
        sign=f"config.json has model_type {model_type}",
        matches=lambda config: config.get("model_type") == model_type and not is_original_glm(config),
        model_type=model_type,
        context_key="max_position_embeddings",
        open_rule="its chat_template is none of the formats that this version knows",
        vocabulary="tokenizer.json",
        lora_targets=_PROJECTIONS,
        linear_sets={"attention": _PROJECTIONS, "mlp": ("gate_up_proj", "down_proj")},
        is_in_transformers=True,
    )


_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_GLM4_RULE: _Rule = (
    "item['metadata'] in its chat_template",
    reads("glm4", "[gMASK]<sop>", "item['metadata']"),
)

FAMILIES: dict[str, Family] = {
    "ChatGLM-6B": Family(
        templates=("chatglm",),
        rules=(("its config's keys", lambda _: "chatglm"),),
        sign=f"config.json has {' or '.join(V1_SIGNS)}",
        matches=is_v1,
        revision=v1_revision,
        revision_rules={
            "early": "it names neither pad_token_id nor gmask_token_id",
            "mid": "it names pad_token_id but no gmask_token_id",
            "late": "it names gmask_token_id",
        },
        context_key="max_sequence_length",
        vocabulary=ICE,
        tokenizer_class=f"ChatGLMTokenizer ({ICE})",
    ),
    "GLM-4": Family(
        templates=("glm4", "glm4_base"),
        rules=(
            ("its eos ids and its chat_template", glm4_chat_revision),
            ("the template written when it was saved", saved_template),
            ("its eos ids and no chat_template", lambda _: "glm4_base"),
        ),
        sign=f"config.json has a list of eos ids, or layernorm_epsilon {GLM4_EPSILON}",
        matches=is_glm4,
        tokenizer_class="ChatGLM4Tokenizer",
    ),
    "ChatGLM2/ChatGLM3": Family(
        templates=_OPEN,
        rules=(
            ("its chat_template", from_chat_template),
            ("its tokenization_chatglm.py", from_tokenizer_code),
            ("the name_or_path in its JSON files", from_names),
            ("the template written when it was saved", saved_template),
        ),
        sign="config.json has model_type chatglm and no sign of ChatGLM-6B or GLM-4",
        matches=is_chatglm,
        tokenizer_class="ChatGLMTokenizer",
    ),
    "GLM-4-hf": replace(
        family_in_transformers("glm", ("glm4", "glm4_base"), (_GLM4_RULE,), base="glm4_base"),
        sign=f"config.json has model_type glm and none of {', '.join(ORIGINAL_GLM_SIGNS)}",
    ),
    "GLM-4-0414": family_in_transformers(
        "glm4",
        ("glm4_0414", "glmz1", "glm4"),
        (
            _GLM4_RULE,
            (
                "<|assistant|> and <think> at the end of its chat_template",
                reads("glmz1", "<|assistant|>\n<think>"),
            ),
            (
                "message.role != 'system' and no </think> in its chat_template",
                reads("glm4_0414", "message.role != 'system'", lacks="</think>"),
            ),
        ),
        base="glm4_0414",
    ),
    "GLM-4.5": replace(
        family_in_transformers(
            "glm4_moe",
            ("glm45", "glm45_nothink"),
            (
                (
                    "/nothink and <tool_response> in its chat_template",
                    reads("glm45", "/nothink", "\n<tool_response>"),
                ),
            ),
            base="glm45",
        ),
        linear_sets={"attention": _PROJECTIONS, "mlp": _OF_EXPERTS},
        experts=_OF_EXPERTS,
    ),
}
"""Every family, by name. Order matters: a config.json belongs to the first family that `matches`, and
ChatGLM2/ChatGLM3 matches every model_type chatglm."""

_KNOWN = f"give the folder of one of {', '.join(FAMILIES)}"
