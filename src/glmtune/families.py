"""Which model family a folder holds, and which chat format it speaks, told from its text files alone.

ChatGLM2 and ChatGLM3 folders have the same config keys and the same tensor names, so the chat format is
looked for elsewhere. Nothing in the folder is ever run, and its own path is never looked at.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import read_json_if_there
from glmtune.folder import ModelFolder
from glmtune.signs import (
    FIRST_GLM_SIGNS,
    GLM4_EPSILON,
    V1_SIGNS,
    Config,
    is_chatglm,
    is_first,
    is_glm4,
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
ICE = "ice_text.model"
"""ChatGLM-6B's vocabulary."""
_OPEN: tuple[str, ...] = ("chatglm2", "chatglm3")
"""The formats that folders tell least surely: of one family, with the same keys and tensors."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a folder is, and which rules decided."""

    template: str | None
    """Its chat format; None while that is open."""
    rule: str
    """What told the chat format."""
    family: str
    revision: str
    """Which of the family's published revisions, where they differ in more than numbers; empty where no
    config.json tells it."""
    family_rule: str
    """What told the family and the revision."""


def identify(
    folder: Path | ModelFolder, template: str | None = None, *, told_by: str = "the template setting"
) -> Identity:
    """The identity of a model's or tokenizer's folder; a given `template` comes first, and `told_by` gave it.

    Raises CheckpointError for a folder of no known family, ConfigError for a `template` of another family.
    """
    folder = ModelFolder.of(folder)
    if template is None:
        return folder.once(_told)
    known = identify_family(folder)
    for allowed in FAMILIES[known.family].templates:
        if template == allowed:
            return replace(known, template=allowed, rule=told_by)
    raise ConfigError(
        f"template: {template!r} is not a chat format of {folder}, which holds a {known.family} model",
        hint=_fitting(folder),
    )


def tells_format(folder: Path | ModelFolder) -> bool:
    """Whether a folder says by itself which chat format it speaks."""
    try:
        return identify(folder).template is not None
    except ConfigError:
        return False


def _told(folder: ModelFolder) -> Identity:
    """What the folder's own files say of its chat format; ConfigError for one that is not known."""
    known = identify_family(folder)
    for rule, look in FAMILIES[known.family].rules:
        told = look(folder)
        if told is not None:
            return replace(known, template=told, rule=rule)
    return known


def identify_family(folder: Path | ModelFolder) -> Identity:
    """The family and revision of a folder, its chat format left open. Raises CheckpointError for none."""
    return ModelFolder.of(folder).once(_identify_family)


def _identify_family(folder: ModelFolder) -> Identity:
    family = _family(folder)
    row = FAMILIES[family]
    if not folder.config:
        return Identity(None, row.open_rule, family, "", "its tokenizer")
    revision = row.revision(folder.config)
    rule = f"{row.sign}; {revision}: {row.revision_rules[revision]}" if revision else row.sign
    return Identity(None, row.open_rule, family, revision, rule)


def require_template(template: str | None, where: str) -> str:
    """`template`, or a ConfigError that asks for it where it is still open."""
    if template is not None:
        return template
    raise ConfigError(
        f"{where}: cannot tell which chat format this model speaks, ChatGLM2's or ChatGLM3's",
        hint=_offer(_OPEN),
    )


def context_of(folder: Path | ModelFolder) -> int | None:
    """Tokens of the longest text that a folder's model was made for; None where its config.json names none.

    Raises CheckpointError for a folder of no known family.
    """
    folder = ModelFolder.of(folder)
    length = folder.config.get(FAMILIES[identify_family(folder).family].context_key)
    return length if type(length) is int and length > 0 else None


def find_family(model_type: str) -> "Family":
    """The first family of this model_type; those that share one also share LoRA's targets and the loader."""
    return next(row for row in FAMILIES.values() if row.model_type == model_type)


def in_transformers() -> tuple[str, ...]:
    """The families whose models are transformers' own classes: the tables give them one row together."""
    return tuple(name for name, row in FAMILIES.items() if row.is_in_transformers)


def name_family(model_type: str) -> str:
    """The name of `find_family`'s row."""
    return next(name for name, row in FAMILIES.items() if row.model_type == model_type)


def _family(folder: ModelFolder) -> str:
    """The family that config.json tells, or in a folder of a tokenizer alone the tokenizer's settings."""
    if not folder.path.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder", hint="give the folder that holds config.json and tokenizer.model"
        )
    if folder.config:
        return _family_of_config(folder.path / "config.json", folder.config)
    for family, row in FAMILIES.items():
        if row.tokenizer_class and row.tokenizer_class == _tokenizer_class(folder):
            return family
    raise CheckpointError(
        f"{folder}: neither a config.json nor a tokenizer_config.json of a GLM model", hint=_KNOWN
    )


def _tokenizer_class(folder: ModelFolder) -> object:
    """The tokenizer's class; ChatGLM-6B's, which has the name of ChatGLM2's, by its vocabulary and tokens."""
    stated = folder.json("tokenizer_config.json")
    named = stated.get("tokenizer_class")
    has_ice_alone = (folder.path / ICE).is_file() and not (folder.path / VOCABULARY).is_file()
    if named == "ChatGLMTokenizer" and (has_ice_alone or "gmask_token" in stated):
        return f"{named} ({ICE})"
    return named


def _family_of_config(where: Path, config: Config) -> str:
    if is_first(config):
        raise CheckpointError(f"{where}: an original GLM model: not supported yet", hint=_KNOWN)
    found = next((name for name, family in FAMILIES.items() if family.is_told_by(config)), None)
    if found is None and str(config.get("model_type")) in UNSUPPORTED_MODELS:
        raise CheckpointError(
            f"{where}: a {UNSUPPORTED_MODELS[config['model_type']]} model "
            f"(model_type {config['model_type']}): not supported yet",
            hint=_KNOWN,
        )
    if found is None:
        types = ", ".join(sorted({repr(family.model_type) for family in FAMILIES.values()}))
        raise CheckpointError(
            f"{where}: model_type is {config.get('model_type')!r}, known are {types}",
            hint=_KNOWN,
        )
    return found


def _fitting(folder: ModelFolder) -> str:
    """The hint of a chat format that does not fit: the folder's own, else those that it can be."""
    try:
        told = identify(folder)
    except ConfigError as err:
        return err.hint
    if told.template:
        return f"leave template out: {told.rule} tells {told.template}"
    return _offer(FAMILIES[told.family].templates)


def _offer(templates: tuple[str, ...]) -> str:
    return "say which: " + " or ".join(f"template={name}" for name in templates)


def _base_template(template: str, templates: tuple[str, ...]) -> Callable[[ModelFolder], str | None]:
    """Tells `template` where there is no chat_template; one that is none of `templates` is a ConfigError."""

    def look(folder: ModelFolder) -> str | None:
        if read_chat_template(folder) in ("", '""'):
            return template
        raise _unknown_format(folder, templates)

    return look


def _unknown_format(folder: ModelFolder, templates: tuple[str, ...]) -> ConfigError:
    named = name_unsupported_format(read_chat_template(folder))
    if named:
        return ConfigError(
            f"{folder}: its chat_template is that of {named}, which is not supported yet", hint=_KNOWN
        )
    return ConfigError(
        f"{folder}: its chat_template is none of the formats that this version knows",
        hint=_made_of(folder.path) or f"if it is an edited one of these, {_offer(templates)}",
    )


def _made_of(folder: Path) -> str:
    """What to open instead of an export for other programs; empty for any other folder."""
    facts = read_json_if_there(folder / "export.json", is_ours=True)
    if facts.get("kind") != "hf":
        return ""
    source = str(facts.get("source"))
    command = f"glmtune export {shlex.quote(source)} --to merged"
    return f"exported for other programs: open {source} itself, or what `{command}` makes of it"


_Rule = tuple[str, Callable[[ModelFolder], str | None]]


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table: how a folder of the family is known, and what follows from that."""

    templates: tuple[str, ...]
    """Its chat formats; a format of one family cannot be used with a folder of another."""
    rules: tuple[_Rule, ...]
    """What tells the chat format, in order: the rule in words, and where it looks."""
    sign: str
    """In words, what in a config.json says that it is this family."""
    is_told_by: Callable[[Config], bool]
    model_type: str = "chatglm"
    revision: Callable[[Config], str] = lambda _: ""
    revision_rules: Mapping[str, str] = field(default_factory=dict)
    """In words, what in a config.json says that it is this revision."""
    context_key: str = "seq_length"
    """Key of the longest context in config.json."""
    vocabulary: str = VOCABULARY
    """Name of the tokenizer's file."""
    tokenizer_class: str = ""
    """What tells the family where a folder has no config.json: the class in its tokenizer_config.json."""
    lora_targets: tuple[str, ...] = ("query_key_value",)
    """What LoRA adapts by default. Source: THUDM/ChatGLM3 finetune_demo/configs/lora.yaml."""
    experts: tuple[str, ...] = ()
    """Names of linear layers that PEFT's LoRA takes for the routed experts, so that it skips the layers.
    Source: github.com/huggingface/peft v0.21.0, utils/transformers_weight_conversion.py."""
    open_rule: str = "nothing in the folder tells ChatGLM2 from ChatGLM3"
    """What is said where no rule told the chat format."""
    is_in_transformers: bool = False
    """Its model is transformers' own class and its tokenizer a tokenizer.json."""


def family_in_transformers(
    model_type: str, templates: tuple[str, ...], rules: tuple[_Rule, ...], base: str
) -> Family:
    """A family whose model is transformers' own class.

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
        is_told_by=lambda config: config.get("model_type") == model_type and not is_first(config),
        model_type=model_type,
        context_key="max_position_embeddings",
        open_rule="its chat_template is none of the formats that this version knows",
        vocabulary="tokenizer.json",
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        is_in_transformers=True,
    )


_GLM4_RULE: _Rule = (
    "item['metadata'] in its chat_template",
    reads("glm4", "[gMASK]<sop>", "item['metadata']"),
)

FAMILIES: dict[str, Family] = {
    "ChatGLM-6B": Family(
        templates=("chatglm",),
        rules=(("its config's keys", lambda _: "chatglm"),),
        sign=f"config.json has {' or '.join(V1_SIGNS)}",
        is_told_by=is_v1,
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
        is_told_by=is_glm4,
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
        is_told_by=is_chatglm,
        tokenizer_class="ChatGLMTokenizer",
    ),
    "GLM-4-hf": replace(
        family_in_transformers("glm", ("glm4", "glm4_base"), (_GLM4_RULE,), base="glm4_base"),
        sign=f"config.json has model_type glm and none of {', '.join(FIRST_GLM_SIGNS)}",
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
        experts=("gate_proj", "up_proj", "down_proj"),
    ),
}
"""Every family, in the order in which a config.json is looked at."""

_KNOWN = f"give the folder of one of {', '.join(FAMILIES)}"
