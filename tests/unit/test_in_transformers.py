"""The families whose models are transformers' own classes: told, loaded, encoded, trained, talked to."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from closeness import assert_close, distance
from commands import glmtune
from glmtune.adapters.store import Card, load_adapter, restore_trained, save_trained
from glmtune.conversation import encode_messages
from glmtune.data.batches import collate
from glmtune.data.row import TrainingRow
from glmtune.errors import CheckpointError, ConfigError, DataError
from glmtune.families import identify
from glmtune.generate import Sampling, complete
from glmtune.info import inspect
from glmtune.load import load_model, load_tokenizer, tokenizer_of
from glmtune.locations import resolve
from glmtune.methods import apply_method
from glmtune.models.published_weights import stored_dtype
from glmtune.objectives import SftObjective
from glmtune.recipe import Full, Lora
from glmtune.templates import Call, Message, render, training_examples
from glmtune.tokenizers import FastGlmTokenizer, read_tokenizer
from models import HF_FAMILIES, random_rows, tiny_hf_folder
from published import PUBLISHED
from tiny import tiny_json

EXAMPLES = Path(__file__).parents[2] / "examples"
"""The type that half precision is opened in here."""
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33]]
TALK = [
    {"role": "user", "content": " 早 <b> "},
    {"role": "assistant", "content": "早上好"},
    {"role": "user", "content": "去哪\n"},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"city": "城市"}}},
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]


@pytest.fixture(scope="module", params=list(HF_FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf_folder(tmp_path_factory.mktemp("hf"), family)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder, device="cpu")


# --- what a folder is ---


def test_the_family_and_the_format_are_told_and_the_rules_are_named(family: str, folder: Path) -> None:
    found = identify(folder)
    model_type, template = HF_FAMILIES[family]
    assert (found.family, found.template) == (family, template)
    assert f"model_type {model_type}" in found.family_rule
    assert "chat_template" in found.rule


@pytest.mark.parametrize(
    ("model_type", "template", "told"),
    [
        ("glm", "glm4", "glm4"),
        ("glm4", "glm4", "glm4"),
        ("glm4", "glm4_0414", "glm4_0414"),
        ("glm4", "glmz1", "glmz1"),
        ("glm4_moe", "glm45_nothink", "glm45"),
        ("glm", None, "glm4_base"),
    ],
)
def test_the_published_chat_templates_tell_the_format(
    tmp_path: Path, model_type: str, template: str | None, told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    text = PUBLISHED[template] if template else ""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}), encoding="utf-8")
    assert identify(tmp_path).template == told
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    assert identify(tmp_path).template == told


def test_an_unknown_chat_template_is_refused_and_may_be_overruled(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "glm4_moe"}', encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("[gMASK]<sop>{{ messages }}", encoding="utf-8")
    with pytest.raises(ConfigError, match="none of the formats") as caught:
        identify(tmp_path)
    offer = "if it is an edited one of these, say which: template=glm45 or template=glm45_nothink"
    assert caught.value.hint == offer
    assert identify(tmp_path, "glm45").template == "glm45"
    with pytest.raises(ConfigError, match="not a chat format of") as caught:
        identify(tmp_path, "glmz1")
    assert caught.value.hint == offer


def test_the_original_glm_is_not_taken_for_the_later_one(tmp_path: Path) -> None:
    config = {"model_type": "glm", "block_position_encoding": True}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="original GLM"):
        identify(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("glm4v", "GLM-4.1V"), ("glm4_moe_lite", "GLM-4.7-Flash"), ("glm_moe_dsa", "GLM-5")],
)
def test_other_models_of_transformers_are_refused_by_name(tmp_path: Path, model_type: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"a {name} model .model_type {model_type}.: not supported"):
        identify(tmp_path)


# --- formats ---


def published(tokenizer: Any, template: str, messages: list[dict[str, Any]], ask: bool, **kwargs: Any) -> Any:
    """transformers' own rendering of the published template, as ids."""
    if template == "glm45_nothink":
        kwargs["enable_thinking"] = False
    return tokenizer.apply_chat_template(
        messages,
        chat_template=PUBLISHED[template],
        add_generation_prompt=ask,
        return_dict=False,
        **kwargs,
    )


@pytest.fixture(scope="module", params=list(PUBLISHED))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_json(tmp_path_factory.mktemp(request.param), request.param)
    model_type = {"glm4": "glm", "glm45": "glm4_moe", "glm45_nothink": "glm4_moe"}.get(request.param, "glm4")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return read_tokenizer(folder, request.param)


CONVERSATIONS = {
    "a question": TALK[:1],
    "a history": TALK,
    "a system message": [{"role": "system", "content": "简短"}, *TALK],
    "a late system message": [*TALK[:2], {"role": "system", "content": "简短"}, TALK[2]],
    "an earlier thought": [
        TALK[0], {"role": "assistant", "content": "<think>\n怎么\n</think>\n\n早上好"}, TALK[2],
    ],
    "an answer at the end": [*TALK, {"role": "assistant", "content": "<think>想</think>\n公园"}],
    "an empty answer": [TALK[0], {"role": "assistant", "content": "</think>"}],
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONVERSATIONS))
@pytest.mark.parametrize("ask", [True, False])
def test_ids_equal_those_of_the_published_template(tokenizer: Any, name: str, ask: bool) -> None:
    messages = CONVERSATIONS[name]
    theirs = published(tokenizer, tokenizer.template, messages, ask)
    assert encode_messages(tokenizer, messages, add_generation_prompt=ask) == theirs


def test_tools_calls_and_results_equal_the_published_template(tokenizer: Any) -> None:
    template = tokenizer.template
    if template == "glm4":
        pytest.skip("its tools are compared with the whole published template elsewhere")
    arguments = {"city": "上海", "days": 2}
    ours = [
        Message("system", "简短", tools=TOOLS),
        Message("user", "天气"),
        Message("assistant", "", calls=(Call("weather", arguments),)),
        Message("observation", "晴"),
        Message("observation", "风"),
        Message("assistant", "晴天"),
        Message("user", "谢谢"),
    ]
    call: dict[str, Any] = {"metadata": "weather", "content": json.dumps(arguments, ensure_ascii=False)}
    result = "observation"
    if template.startswith("glm45"):
        call = {"content": "", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}
        result = "tool"
    theirs = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "天气"},
        {"role": "assistant", **call},
        {"role": result, "content": "晴"},
        {"role": result, "content": "风"},
        {"role": "assistant", "content": "晴天"},
        {"role": "user", "content": "谢谢"},
    ]
    assert tokenizer.encode_segments(tokenizer.segments(ours)) == published(
        tokenizer, template, theirs, True, tools=TOOLS
    )


def learned(template: str, messages: list[Message]) -> list[str]:
    return [
        "".join(segment.text for segment in segments if segment.is_target)
        for segments in training_examples(template, messages)
    ]


THOUGHT = [
    Message("user", "早"),
    Message("assistant", "<think>\n怎么\n</think>\n早上好"),
    Message("user", "去哪"),
    Message("assistant", "公园"),
]


def test_glm_z1_learns_the_thought_that_its_prompt_begins() -> None:
    assert learned("glmz1", THOUGHT) == ["\n怎么\n</think>\n早上好<|user|>", "\n\n</think>\n\n公园<|user|>"]
    last = training_examples("glmz1", THOUGHT)[1]
    sent = "".join(segment.text for segment in last if not segment.is_target)
    assert sent == "[gMASK]<sop><|user|>\n早<|assistant|>\n早上好<|user|>\n去哪<|assistant|>\n<think>"


def test_glm_45_learns_each_answer_as_it_is_generated_and_forgets_earlier_thoughts() -> None:
    assert learned("glm45", THOUGHT) == [
        "\n<think>怎么</think>\n早上好<|user|>",
        "\n<think></think>\n公园<|user|>",
    ]
    assert learned("glm45_nothink", THOUGHT) == ["\n早上好<|user|>", "\n公园<|user|>"]
    sent = "".join(segment.text for segment in render("glm45_nothink", THOUGHT[:3]))
    assert sent == (
        "[gMASK]<sop><|user|>\n早/nothink<|assistant|>\n<think></think>\n早上好"
        "<|user|>\n去哪/nothink<|assistant|>\n<think></think>"
    )


def test_a_call_is_learned_with_the_observation_that_ends_it() -> None:
    call = [Message("user", "天气"), Message("assistant", "", calls=(Call("weather", {"city": "上海"}),))]
    named = [call[0], Message("assistant", '{"city": "上海"}', "weather")]
    assert learned("glm45", call) == [
        "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>上海</arg_value>\n"
        "</tool_call><|observation|>"
    ]
    assert learned("glm45", named) == learned("glm45", call)
    assert learned("glm4", call) == learned("glm4", named) == ['weather\n{"city": "上海"}<|observation|>']
    assert learned("glm4_0414", call) == ['weather \n{"city": "上海"}<|observation|>']
    assert learned("chatglm3", call) == ["weather\n```python\ntool_call(city='上海')\n```<|observation|>"]
    with pytest.raises(DataError, match="GLM-Z1: a tool call cannot be learned"):
        training_examples("glmz1", call)
    with pytest.raises(DataError, match="no JSON object"):
        training_examples("glm45", [call[0], Message("assistant", "city=上海", "weather")])


AGENT = [
    Message("user", "两地几点"),
    Message(
        "assistant",
        "我查一下。",
        thought="要查两次",
        calls=(Call("time", {"city": "北京"}), Call("time", {"city": "上海"})),
    ),
    Message("observation", "九点"),
    Message("observation", "十点"),
    Message("assistant", "九点和十点", thought="都有了"),
]


def test_glm_45_learns_a_turn_of_thought_text_and_calls_as_one() -> None:
    city = "<tool_call>time\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
    calls = f"\n{city.format('北京')}\n{city.format('上海')}<|observation|>"
    assert learned("glm45", AGENT) == [
        f"\n<think>要查两次</think>\n我查一下。{calls}",
        "\n<think>都有了</think>\n九点和十点<|user|>",
    ]
    assert learned("glm45_nothink", AGENT)[0] == f"\n我查一下。{calls}"
    last = training_examples("glm45", AGENT)[-1]
    sent = "".join(segment.text for segment in last if not segment.is_target)
    assert sent.endswith(
        "<|observation|>\n<tool_response>\n九点\n</tool_response>\n<tool_response>\n十点\n</tool_response>"
        "<|assistant|>"
    )


def test_text_and_line_break_in_front_of_a_call_are_one_text() -> None:
    """A tokenizer joins the full stop and the line break behind it, as it does in the published text."""
    texts = [segment.text for segment in render("glm45", AGENT[:2], False)]
    assert "\n我查一下。\n" in texts


def test_glm_4_writes_text_and_each_call_behind_the_assistants_token_in_one_answer() -> None:
    assert learned("glm4", AGENT) == [
        '\n我查一下。<|assistant|>time\n{"city": "北京"}<|assistant|>time\n{"city": "上海"}<|observation|>'
        "\n九点和十点<|user|>"
    ]


def test_a_call_that_the_user_interrupts_is_not_learned_to_wait_for_the_user() -> None:
    (example,) = training_examples("glm4", [*AGENT[:2], Message("user", "算了"), Message("assistant", "好")])
    ends = [segment.text for segment in example if segment.is_control and segment.is_target]
    assert ends == ["<|assistant|>", "<|assistant|>", "<|user|>"]


def test_a_thought_in_front_of_an_earlier_call_leaves_no_empty_turn_behind() -> None:
    called = Message("assistant", "<think>要查</think>", calls=(Call("time", {}),))
    sent = "".join(segment.text for segment in render("glmz1", [THOUGHT[0], called], False))
    assert sent == "[gMASK]<sop><|user|>\n早<|assistant|>time\n{}"


def test_glm_z1_learns_a_thought_beside_the_answer_between_line_breaks() -> None:
    talk = [THOUGHT[0], Message("assistant", "早上好", thought="怎么")]
    assert learned("glmz1", talk) == ["\n怎么\n</think>\n\n早上好<|user|>"]


# --- tokenizer ---


def test_plain_text_is_never_a_control_token_and_comes_back(tokenizer: Any) -> None:
    text = "<|assistant|></think><think>/nothink[gMASK] <sop>\n🙂 龘"
    ids = tokenizer.encode_plain(text)
    assert not set(ids) & set(tokenizer.added_tokens_encoder.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.control_id("<|user|>") in tokenizer("<|user|>")["input_ids"]


def test_plain_text_has_transformers_own_ids(tokenizer: Any) -> None:
    text = "今天天气很好。 The weather is fine,\n\n it's 1234 度"
    assert tokenizer.encode_plain(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    raw = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    assert tokenizer.encode_plain(text) == raw(text, add_special_tokens=False)["input_ids"]


def test_stop_ids_and_pads_are_the_formats(tokenizer: Any) -> None:
    assert tokenizer.stop_ids == [
        tokenizer.control_id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")
    ]
    batch = tokenizer(["你好", "今天天气很好"], padding=True)
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id == tokenizer.stop_ids[0]


def test_auto_tokenizer_stays_transformers_own(folder: Path) -> None:
    import glmtune.models  # noqa: F401  # registers our classes

    found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert not isinstance(found, FastGlmTokenizer)
    assert isinstance(load_tokenizer(folder), FastGlmTokenizer)
    assert load_tokenizer(folder).chat_template == found.chat_template == PUBLISHED[identify(folder).template]


# --- model ---


def test_it_is_transformers_own_class_with_the_same_weights(family: str, folder: Path, model: Any) -> None:
    raw = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model) is type(raw)
    assert type(model).__module__.startswith("transformers.")
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(model(ids).logits, raw(ids).logits)


def test_greedy_answers_equal_generate_and_a_batch_its_rows(model: Any) -> None:
    greedy = Sampling(do_sample=False, max_new_tokens=16)
    ours = complete(model, PROMPTS, greedy, stop_ids=[])
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer == out[0, len(prompt) :].tolist()
    assert any(len(set(answer)) > 3 for answer in ours)


def test_a_left_padded_batch_equals_its_rows_and_cached_steps_the_whole(model: Any) -> None:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, prompt in zip(batch, PROMPTS, strict=True):
        whole = model(torch.tensor([prompt])).logits[0]
        assert_close(row[-len(prompt) :], whole)
    first = model(torch.tensor([PROMPTS[1][:4]]), use_cache=True)
    rest = model(torch.tensor([PROMPTS[1][4:]]), past_key_values=first.past_key_values)
    whole = model(torch.tensor([PROMPTS[1]])).logits
    assert_close(rest.logits, whole[:, 4:])


def test_the_loss_is_transformers_own(model: Any) -> None:
    rows: list[TrainingRow] = random_rows(4)
    batch = collate(rows, 0)
    objective = SftObjective(model)
    theirs = model(**batch.padded()).loss
    assert_close(objective(batch) / objective.weight(batch), theirs)


@pytest.mark.parametrize(
    ("dtype", "held"), [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_weights_are_held_in_the_type_asked_for(tmp_path: Path, dtype: str, held: torch.dtype) -> None:
    folder = tiny_hf_folder(tmp_path, "GLM-4-0414", dtype=torch.bfloat16)
    assert stored_dtype(folder) == torch.bfloat16
    assert {p.dtype for p in load_model(folder, dtype=dtype, device="cpu").parameters()} == {held}


# --- methods ---


def test_lora_adapts_the_attention_projections_and_its_adapter_loads_back(
    folder: Path, tmp_path: Path
) -> None:
    tuned = apply_method(load_model(folder, device="cpu"), Lora(r=2, dropout=0.0)).eval()
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in tuned.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_trained(tuned, tmp_path, Card(base=str(folder), template="glm4", method={}))
    ids = torch.tensor([PROMPTS[1]])
    again = load_adapter(load_model(folder, device="cpu"), tmp_path).eval()
    assert_close(again(ids).logits, tuned(ids).logits)
    assert distance(again(ids).logits, load_model(folder, device="cpu")(ids).logits) > 1e-3


def test_an_unknown_target_is_answered_with_the_valid_names(model: Any) -> None:
    with pytest.raises(ConfigError, match="no linear layer called 'query_key_value'") as caught:
        apply_method(model, Lora(target_modules=("query_key_value",)))
    assert "q_proj, k_proj, v_proj, o_proj" in caught.value.hint


def test_a_wholly_trained_model_is_saved_for_transformers_and_restored(folder: Path, tmp_path: Path) -> None:
    tuned = apply_method(load_model(folder, device="cpu"), Full())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01)
    save_trained(tuned, tmp_path, Card(base=str(folder), template="glm4", method={}))
    fresh = apply_method(load_model(folder, device="cpu"), Full())
    restore_trained(fresh, tmp_path)
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(fresh(ids).logits, tuned(ids).logits)
    raw = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(raw(ids).logits, tuned.eval()(ids).logits)


# --- layers behind the model's own, which predict further tokens ---


def with_layer(folder: Path, number: int, **settings: Any) -> Path:
    """A GLM-4.5 of two layers, and one more in its files."""
    tiny_hf_folder(folder, "GLM-4.5", **settings)
    tensors = load_file(folder / "model.safetensors")
    more = {
        n.replace("layers.1.", f"layers.{number}."): t.clone() for n, t in tensors.items() if "layers.1." in n
    }
    save_file({**tensors, **more}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_as_many_mtp_layers_as_the_config_says_are_passed_over(tmp_path: Path) -> None:
    folder = with_layer(tmp_path / "with", 2, num_nextn_predict_layers=1)
    plain = tiny_hf_folder(tmp_path / "plain", "GLM-4.5")
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(load_model(folder)(ids).logits, load_model(plain)(ids).logits)
    assert inspect(folder).warnings == ()


@pytest.mark.parametrize(("number", "said"), [(2, 0), (3, 1), (46, 1), (92, 1)])
def test_any_other_layer_is_not_part_of_the_model(number: int, said: int, tmp_path: Path) -> None:
    folder = with_layer(tmp_path / "with", number, num_nextn_predict_layers=said)
    with pytest.raises(CheckpointError, match=rf"model.layers.{number}\..* is not part of this model"):
        load_model(folder)
    assert "is not part of this model" in inspect(folder).warnings[0]


# --- what is wrong with a folder ---


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_config(folder: Path, keys: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | keys), encoding="utf-8")


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "model.extra is not part of this model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), r"model.norm.weight has shape \[7\]"),
    ],
)
def test_weights_of_another_model_are_refused(copied: Path, change: Any, words: str) -> None:
    change_weights(copied, change)
    with pytest.raises(CheckpointError, match=words):
        load_model(copied, device="cpu")
    [warning] = inspect(copied).warnings
    assert re.search(f"cannot be loaded: .*{words}", warning)
    held = load_file(copied / "model.safetensors")
    assert inspect(copied).num_parameters == sum(tensor.numel() for tensor in held.values())


def test_what_does_not_match_is_said_by_the_error_alone(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(copied, lambda tensors: tensors.pop("model.norm.weight"))
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
            load_model(copied, device="cpu")
        assert "REPORT" not in caplog.text
        logger.warning("said outside of a load")
    finally:
        logger.removeHandler(caplog.handler)
    assert "said outside of a load" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_attention_heads", "x", "num_attention_heads must be an integer from 1 to 1,024, got 'x'"),
        ("num_attention_heads", 0, "num_attention_heads must be an integer from 1 to 1,024, got 0"),
        ("hidden_size", -1, "hidden_size must be an integer from 1 to 65,536, got -1"),
        ("max_position_embeddings", "x", "max_position_embeddings must be an integer"),
        ("eos_token_id", "x", "eos_token_id must be a token's id"),
        ("rope_parameters", "x", "rope_parameters must be an object"),
        ("layer_types", ["x"], "layer_types"),
        ("dtype", "x", "dtype must be float16, bfloat16 or float32"),
        ("hidden_act", "x", "unknown 'x'"),
        ("quantization_config", "x", "quantization_config must be an object with a quant_method, got 'x'"),
    ],
)
def test_a_wrong_value_in_config_json_is_named_with_its_key(
    copied: Path, key: str, value: Any, words: str
) -> None:
    change_config(copied, {key: value})
    with pytest.raises((CheckpointError, ConfigError), match=f"(?s)config.json.*{words}"):
        load_model(copied, device="cpu")
    done = glmtune("info", copied, cwd=copied)
    assert done.returncode == 0
    assert re.search(f"warning: this folder cannot be loaded: config.json.*{words}", done.stdout)


def test_missing_shards_and_pointers_are_named(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors: missing, but listed"):
        load_model(copied, device="cpu")
    (copied / "model.safetensors.index.json").unlink()
    weights.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="a git-lfs pointer"):
        load_model(copied, device="cpu")


def test_prequantised_weights_are_refused_by_name(copied: Path) -> None:
    whole = inspect(copied)
    change_config(copied, {"quantization_config": {"quant_method": "fp8"}})
    change_weights(
        copied, lambda t: t.update({name: held.to(torch.float8_e4m3fn) for name, held in t.items()})
    )
    with pytest.raises(CheckpointError, match=r"pre-quantised weights \(fp8\)"):
        load_model(copied, device="cpu")
    found = inspect(copied)
    [warning] = found.warnings
    assert warning == (
        "this folder cannot be loaded: config.json: pre-quantised weights (fp8) cannot be opened"
    )
    assert (found.quant, found.dtype) == ("fp8", "float8_e4m3fn")
    assert found.num_parameters == whole.num_parameters


def test_all_bytes_of_the_files_are_shown(folder: Path) -> None:
    found, held = inspect(folder), load_file(folder / "model.safetensors")
    held = {name: tensor for name, tensor in held.items() if not name.endswith("bias") or "proj" in name}
    assert sum(part.num_bytes for part in found.parts) == sum(tensor.nbytes for tensor in held.values())
    assert found.num_parameters == sum(tensor.numel() for tensor in held.values())


def test_of_an_unknown_chat_format_all_else_is_told(copied: Path) -> None:
    whole = inspect(copied)
    (copied / "chat_template.jinja").write_text("[gMASK]<sop>{{ messages }}", encoding="utf-8")
    found = inspect(copied)
    assert (found.family, found.template, found.context) == (whole.family, None, whole.context)
    assert (found.parameters, found.tokenizer) == (whole.parameters, whole.tokenizer)
    assert [token.id for token in found.stop_tokens] == [token.id for token in whole.stop_tokens]
    [warning] = found.warnings
    assert "its chat_template is none of the formats that this version knows" in warning
    assert (
        "  template         open (its chat_template is none of" in glmtune("info", copied, cwd=copied).stdout
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[gMASK]<sop>{% if clear_thinking %}<|user|>", "GLM-4.7 or a later model"),
        ("[gMASK]<sop><|system|>\n你是一个专业的深度研究助手", "GLM-Z1-Rumination"),
        ("<|user|>\n{{ item['content'] }}", "GLM-Edge"),
    ],
)
def test_a_chat_format_that_is_not_supported_is_refused_by_name(copied: Path, text: str, name: str) -> None:
    (copied / "chat_template.jinja").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"its chat_template is that of {name}, which is not") as caught:
        load_tokenizer(copied)
    assert "template=" not in caught.value.hint
    with pytest.raises(ConfigError, match="not a chat format of") as caught:
        load_tokenizer(copied, template="chatglm3")
    assert caught.value.hint.startswith("give the folder of one of")


def test_a_tokenizer_of_another_family_is_refused(copied: Path) -> None:
    raw = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    for text, words in (
        (json.dumps(raw | {"added_tokens": []}), "no token '[MASK]'"),
        (json.dumps({"model": {"type": "WordLevel"}}), "not a byte-pair vocabulary"),
        ("{", "broken JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ):
        (copied / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=re.escape(words)):
            load_tokenizer(copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="vocabulary file is missing"):
        load_tokenizer(copied)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps(config | {"vocab_size": 100}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="but the model only 100 rows"):
        tokenizer_of(resolve(copied), template=None)


# --- the command line ---


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_trains_resumes_evaluates_and_chats(folder: Path, tmp_path: Path, method: str) -> None:
    rows = EXAMPLES / "adverts.jsonl"
    words = [
        f"model={folder}", f"data.train={rows}", "data.max_tokens=400", "train.steps=1", "train.batch_size=2",
        f"method.name={method}", "samples.max_new_tokens=4", "output=run",
    ]  # fmt: skip
    done = glmtune("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[gMASK]<sop><|user|>" in done.stdout
    done = glmtune("train", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run: finished, at step 1" in done.stdout
    done = glmtune(
        "evaluate", "run", "--data", rows, "evaluate.max_rows=2", "evaluate.max_new_tokens=4", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    done = glmtune("chat", "run", "--max-new-tokens", 4, cwd=tmp_path, typed="你好\nstop\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<|run|>: ") == 1
