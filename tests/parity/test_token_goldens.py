"""Every recorded result of the official tokenizers, with their genuine vocabularies, read from ../shared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from glmtune.conversation import encode_messages
from glmtune.errors import CheckpointError
from glmtune.families import identify
from glmtune.models.official_chat import process_turns
from glmtune.templates import TEMPLATES
from glmtune.templates.tidy import process_chatglm, process_chatglm2
from glmtune.tokenizers import check_fits, read_tokenizer, register

pytestmark = pytest.mark.shared

REVISIONS = {
    "v2": ("chatglm2-6b_20230908", "chatglm2_3.tokenizer.model", "chatglm2"),
    "v3": ("chatglm3-6b_20231207", "chatglm2_3.tokenizer.model", "chatglm3"),
    "glm4": ("glm-4-9b-chat", "glm4.tokenizer.model", "glm4"),
    "glm4_base": ("glm-4-9b", "glm4.tokenizer.model", "glm4_base"),
    "v1_early": ("chatglm-6b_20230319", "ice_text.early.model", "chatglm"),
    "v1_mid": ("chatglm-6b_20230405", "ice_text.early.model", "chatglm"),
    "v1_late": ("chatglm-6b_20230904", "ice_text.model", "chatglm"),
}


def official_folder(shared: Path, folder: Path, revision: str) -> Path:
    """A folder with the official small files of a revision."""
    configs, vocabulary, _ = REVISIONS[revision]
    folder.mkdir(parents=True, exist_ok=True)
    for path in (shared / "tokenizers/configs" / configs).glob("*config.json"):
        shutil.copyfile(path, folder / path.name)
    name = "ice_text.model" if revision.startswith("v1") else "tokenizer.model"
    shutil.copyfile(shared / "tokenizers" / vocabulary, folder / name)
    return folder


SAME_IDS = {
    "chatglm2-6b_20230908": "chatglm3-6b_20231207",
    "glm-4-9b": "glm-4-9b-chat",
    "chatglm-6b_20230319": "chatglm-6b_20230405",
}


class Golden:
    def __init__(self, shared: Path, folder: Path, revision: str) -> None:
        self.revision = revision
        self.configs, _, self.template = REVISIONS[revision]
        self.folders = shared / "tokenizers/configs"
        # the tokenizer is the question here, not whether the model's config can be read
        self.folder = official_folder(shared, folder, revision)
        self.tokenizer: Any = read_tokenizer(self.folder)
        self.truth = json.loads((shared / f"goldens/tokens/{revision}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=list(REVISIONS))
def golden(request, shared, tmp_path_factory) -> Golden:
    return Golden(shared, tmp_path_factory.mktemp(request.param), request.param)


def raises(value: Any) -> bool:
    return isinstance(value, dict) and "raises" in value


def token(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def test_the_template_is_told_from_the_folder(golden):
    assert golden.tokenizer.template == golden.template


def test_auto_tokenizer_opens_the_official_folder_without_remote_code(golden):
    register()
    found = AutoTokenizer.from_pretrained(golden.folder, trust_remote_code=False)
    assert type(found) is type(golden.tokenizer)
    assert found.template == golden.template


def test_attributes_are_the_official_ones(golden):
    for name, value in golden.truth["attributes"].items():
        if not raises(value):
            assert getattr(golden.tokenizer, name) == value, name
    assert len(golden.tokenizer) == golden.truth["len"]


def test_lookups_are_the_official_ones(golden):
    for spelling, value in golden.truth["special_lookup"].items():
        if golden.revision == "v1_late" and spelling == "<image_12>":
            continue  # officially id 12, which is another token there
        if not raises(value):
            assert golden.tokenizer.convert_tokens_to_ids(spelling) == value, spelling
    for spelling, value in golden.truth.get("get_command", {}).items():
        if not raises(value):
            assert golden.tokenizer.get_command(spelling) == value, spelling
    for index, value in golden.truth["id_to_token"]:
        assert golden.tokenizer.convert_ids_to_tokens(index) == token(value), index


def test_every_text_has_the_official_ids_and_decodes_alike(golden):
    tokenizer = golden.tokenizer
    for case in golden.truth["texts"]:
        text, ids = case["text"], case["ids"]
        assert tokenizer.tokenize(text) == [token(value) for value in case["tokens"]], text
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer(text)["input_ids"] == case["ids_special"], text
        assert tokenizer.decode(ids) == ("" if raises(case["decode"]) else case["decode"]), text
        assert tokenizer.decode(case["ids_special"]) == case["decode_special"], text
        skipped = tokenizer.decode(case["ids_special"], skip_special_tokens=True)
        assert skipped == case["decode_special_skip"], text
        prefixes = [tokenizer.decode(ids[: n + 1]) for n in range(len(case["decode_prefixes"]))]
        assert prefixes == case["decode_prefixes"], text


def test_plain_encoding_never_gives_a_control_token_and_equals_the_official_where_that_does_not(golden):
    tokenizer = golden.tokenizer
    control = control_ids(tokenizer)
    for case in golden.truth["texts"]:
        ids = tokenizer.encode_plain(case["text"])
        assert not control.intersection(ids)
        if not control.intersection(case["ids"]):
            assert ids == case["ids"], case["text"]


def test_pairs_are_the_official_ones(golden):
    for case in golden.truth["pairs"]:
        if not raises(case["ids"]):
            assert golden.tokenizer(case["a"], case["b"])["input_ids"] == case["ids"]
            ids = [golden.tokenizer.encode_plain(case[side]) for side in "ab"]
            assert golden.tokenizer.build_inputs_with_special_tokens(*ids) == case["built"]


PADDING = {
    "padding=True,np": {"padding": True, "return_tensors": "np"},
    "padding=True,pt": {"padding": True, "return_tensors": "pt"},
    "no padding": {},
    "max_length=32,np": {
        "padding": "max_length",
        "max_length": 32,
        "truncation": True,
        "return_tensors": "np",
    },
    "max_length=12 truncation": {"max_length": 12, "truncation": True},
    "pad_to_multiple_of=8": {"padding": True, "pad_to_multiple_of": 8},
}


def control_ids(tokenizer: Any) -> set[int]:
    if tokenizer.template == "chatglm":
        first = tokenizer.control_id("<unk>")
        return {*range(first, first + 4), *map(tokenizer.control_id, TEMPLATES["chatglm"].control_tokens)}
    is_glm4 = tokenizer.template.startswith("glm4")
    return set(range(tokenizer.vocab_size if is_glm4 else tokenizer.control_id("[MASK]"), len(tokenizer)))


def plain(encoded: Any) -> dict[str, Any]:
    return {key: listed(value) for key, value in dict(encoded).items()}


def listed(value: Any) -> Any:
    if isinstance(value, list):
        return [listed(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value


def test_padding_and_truncation_are_the_official_ones(golden):
    texts, truth = golden.truth["batch_texts"], golden.truth["padding"]
    for name, arguments in PADDING.items():
        found = plain(golden.tokenizer(texts, **arguments))
        if golden.revision == "v1_early":  # a deviation: padded rows have their mask
            assert ("attention_mask" in found) == ("padding" in arguments)
            found.pop("attention_mask", None)
        assert found == truth[name], name
    assert plain(golden.tokenizer(texts[0], return_tensors="pt")) == truth["single pt"]
    targets = golden.tokenizer(text_target=texts, max_length=10, truncation=True)
    assert plain(targets) == truth["text_target"]


def test_decoding_is_the_official_one(golden):
    tokenizer, truth = golden.tokenizer, golden.truth
    ids = tokenizer(truth["batch_texts"])["input_ids"]
    # recorded with skip_special_tokens=True
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == truth["batch_decode"]
    # officially the default there; it takes the space out of `a ? b` and ` .5`
    options = {"clean_up_tokenization_spaces": True} if golden.revision == "v1_late" else {}
    for case in truth["decode_ids"]:
        assert tokenizer.decode(case["ids"], **options) == ("" if raises(case["text"]) else case["text"])


def test_decoding_one_id_is_decoding_a_list_of_one(golden):
    """A deviation: the official result is the token's spelling (ChatGLM) or nothing (GLM-4)."""
    assert golden.tokenizer.decode(65) == golden.tokenizer.decode([65])


def test_single_messages_are_the_official_ones(golden):
    for case in golden.truth.get("build_single_message", []):
        arguments = (case["role"], case["metadata"], case["message"])
        if not raises(case["ids"]):
            assert golden.tokenizer.build_single_message(*arguments) == case["ids"]
        if "text" in case and not raises(case["text"]):
            assert golden.tokenizer.build_single_message(*arguments, tokenize=False) == case["text"]


def test_role_tokens_in_text_become_control_tokens_only_where_asked(golden):
    if not (cases := golden.truth.get("encode_special_tokens=True", [])):
        return
    tokenizer = read_tokenizer(golden.folder)
    tokenizer.encode_special_tokens = True
    for case in cases:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decode"]


def test_chat_encodings_are_the_official_ones(golden):
    for case in golden.truth["chats"]:
        CHATS[golden.template](golden.tokenizer, case)


def check_rounds(tokenizer: Any, case: dict[str, Any]) -> None:
    if case["error"]:
        return
    history = [tuple(pair) for pair in case["history"]]
    if "build_prompt" in case:
        assert tokenizer.build_prompt(case["query"], history) == case["build_prompt"]
        assert tokenizer.build_prompt(case["query"]) == case["build_prompt_none"]
    messages = [
        {"role": role, "content": content}
        for pair in history
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    ids = encode_messages(tokenizer, [*messages, {"role": "user", "content": case["query"]}])
    assert [ids] == case["chat_generate_kwargs"]["input_ids"]


def check_chatglm3(tokenizer: Any, case: dict[str, Any]) -> None:
    query = {"role": case["role"], "content": case["query"]}
    for key, history in (("build_chat_input", case["history"]), ("build_chat_input_no_history", [])):
        truth = case[key]
        assert plain(tokenizer.build_chat_input(case["query"], history, role=case["role"])) == truth
        assert [encode_messages(tokenizer, [*history, query])] == truth["input_ids"]
    assert case["chat_generate_kwargs"]["eos_token_id"] == tokenizer.stop_ids


def check_glm4(tokenizer: Any, case: dict[str, Any]) -> None:
    spells_control = any("<|" in message["content"] for message in case["messages"])
    for add in (False, True):
        arguments = {"add_generation_prompt": add}
        text = tokenizer.apply_chat_template(case["messages"], tokenize=False, **arguments)
        assert text == case[f"text,add_generation_prompt={add}"]
        truth = case[f"ids,add_generation_prompt={add}"]
        encoded = tokenizer.apply_chat_template(case["messages"], return_tensors="pt", **arguments)
        assert plain(encoded) == truth
        ids = encode_messages(tokenizer, case["messages"], add_generation_prompt=add)
        if tokenizer.template == "glm4" and spells_control:
            # the deviation: the official chat revision turns this text into control tokens
            content = tokenizer.encode_plain("\n" + case["messages"][0]["content"])
            end = [tokenizer.control_id("<|assistant|>")] if add else []
            assert ids == [*tokenizer.get_prefix_tokens(), tokenizer.control_id("<|user|>"), *content, *end]
            assert [ids] != truth["input_ids"]
            continue
        assert [ids] == truth["input_ids"]


CHATS = {
    "chatglm": check_rounds,
    "chatglm2": check_rounds,
    "chatglm3": check_chatglm3,
    "glm4": check_glm4,
    "glm4_base": check_glm4,
}


def test_a_batch_of_conversations_is_padded_as_the_official_one(golden):
    if "chat_batch" not in golden.truth:
        return
    conversations = [case["messages"] for case in golden.truth["chats"][:2]]
    found = golden.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, padding=True)
    assert plain(found) == golden.truth["chat_batch"]


def test_answers_are_read_as_the_official_code_reads_them(golden):
    process = process_chatglm if golden.template == "chatglm" else process_chatglm2
    for case in golden.truth.get("process_response") or []:
        if "response" in case:
            assert process(case["response"]) == case["result"]
        else:
            assert list(process_turns(case["output"], case["history"])) == case["result"]


TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "description": "看 & <b>", "parameters": {"a": [1, None]}},
    },
    {"type": "python"},
    {"type": "simple_browser"},
    {"type": "cogview"},
]
TOOL_TALK = [
    {"role": "system", "content": "短", "tools": TOOLS},
    {"role": "user", "content": "\n 你好 "},
    {"role": "assistant", "metadata": "look", "content": "{}"},
    {"role": "observation", "content": "晴"},
    {"role": "assistant", "content": ""},
]


@pytest.mark.parametrize("revision", ["glm-4-9b-chat", "glm-4-9b-chat-1m"])
def test_our_tool_instructions_are_those_of_the_official_jinja_template(shared, tmp_path, revision):
    shutil.copyfile(shared / "tokenizers/glm4.tokenizer.model", tmp_path / "tokenizer.model")
    for path in (shared / "tokenizers/configs" / revision).glob("*config.json"):
        shutil.copyfile(path, tmp_path / path.name)
    tokenizer = read_tokenizer(tmp_path)
    for count in range(len(TOOLS) + 1):
        talk = [{**TOOL_TALK[0], "tools": TOOLS[:count]}, *TOOL_TALK[1:]]
        official = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert encode_messages(tokenizer, talk) == official


def test_the_32k_folder_is_told_by_its_chat_template(shared, tmp_path):
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(shared / f"tokenizers/configs/chatglm3-6b-32k_{name}", tmp_path / name)
    shutil.copyfile(shared / "tokenizers/chatglm2_3.tokenizer.model", tmp_path / "tokenizer.model")
    assert identify(tmp_path).rule == "its chat_template"
    assert read_tokenizer(tmp_path).template == "chatglm3"


def test_auto_tokenizer_does_not_ask_whether_to_trust(golden):
    register()
    assert AutoTokenizer.from_pretrained(golden.folder).template == golden.template


@pytest.mark.parametrize("name", ["chatglm2_3.tokenizer.model", "cog-pretrain.model", "glm4.tokenizer.model"])
def test_genuine_vocabularies_of_other_models_are_no_ice_text(shared, tmp_path, name):
    folder = official_folder(shared, tmp_path, "v1_late")
    shutil.copyfile(shared / "tokenizers" / name, folder / "ice_text.model")
    with pytest.raises(CheckpointError, match=r"ice_text\.model.*vocabulary.*ChatGLM-6B"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("revision", "name"), [("v1_late", "ice_text.early.model"), ("v1_mid", "ice_text.model")]
)
def test_another_revisions_vocabulary_is_refused(shared, tmp_path, revision, name):
    folder = official_folder(shared, tmp_path, revision)
    shutil.copyfile(shared / "tokenizers" / name, folder / "ice_text.model")
    with pytest.raises(CheckpointError, match="revision"):
        read_tokenizer(folder)


@pytest.mark.parametrize(("name", "revision"), [("ice_text.model", "late"), ("ice_text.early.model", "mid")])
def test_without_a_config_the_vocabulary_tells_the_revision(shared, tmp_path, name, revision):
    folder = official_folder(shared, tmp_path, f"v1_{revision}")
    (folder / "config.json").unlink()
    shutil.copyfile(shared / "tokenizers" / name, folder / "ice_text.model")
    assert read_tokenizer(folder).ice_revision == revision


@pytest.mark.parametrize(
    "name", ["ice_text.model", "ice_text.early.model", "cog-pretrain.model", "glm4.tokenizer.model"]
)
def test_genuine_vocabularies_of_other_models_are_refused(shared, tmp_path, name):
    folder = official_folder(shared, tmp_path, "v3")
    shutil.copyfile(shared / "tokenizers" / name, folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match="vocabulary"):
        read_tokenizer(folder)


def test_genuine_tokenizers_fit_their_models_and_no_others(golden):
    for configs in sorted({row[0] for row in REVISIONS.values()}):
        config = json.loads((golden.folders / configs / "config.json").read_text())
        rows = config.get("padded_vocab_size") or config["vocab_size"]
        if SAME_IDS.get(configs, configs) == SAME_IDS.get(golden.configs, golden.configs):
            check_fits(golden.tokenizer, rows, config["eos_token_id"])
        else:
            with pytest.raises(CheckpointError, match="this vocabulary"):
                check_fits(golden.tokenizer, rows, config["eos_token_id"])
