"""Every family: the engine's greedy ids are those of `generate`, adapters and prefixes included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glmtune import load_model
from glmtune.errors import ConfigError
from glmtune.generate import Engine, Request, Sampling, complete
from glmtune.generate.compute import speed_up
from glmtune.models.quant import held_quant, quantise_linears
from golden import read_golden
from models import HF_FAMILIES, lively_model, tiny_folder, tiny_hf_folder, tiny_v1_folder

NEW = 12
GREEDY = Sampling(do_sample=False, max_new_tokens=NEW)
TEXTS = [[20, 21, 22, 23, 24, 25, 26], [40], [50, 51, 52, 60]]
PAD = 3


def build(name: str, folder: Path) -> Any:
    if name in HF_FAMILIES:
        from glmtune.models import load_in_transformers

        template = HF_FAMILIES[name][1]
        return load_in_transformers(
            tiny_hf_folder(folder, name), dtype="fp32", device="cpu", template=template
        )
    if name == "chatglm2":
        return lively_model(rope_ratio=2, rope_scaling_by="positions")
    if name == "glm4":
        return lively_model(
            multi_query_group_num=1, layernorm_epsilon=1.5625e-07, rope_ratio=500, rope_scaling_by="base"
        )
    return read_golden(name).model


def put_on(model: Any, what: str) -> Any:
    torch.manual_seed(1)
    if what == "prefix":
        model.attach_prefix(5)
    elif what == "lora":
        names = {"query_key_value", "q_proj"}
        targets = names & {name.rpartition(".")[2] for name, _ in model.named_modules()}
        settings = LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False)
        model = get_peft_model(model, settings)
    return model.eval()


def prompts_of(model: Any) -> list[list[int]]:
    """The texts, as a prompt of ChatGLM-6B where that is what the model is."""
    config = model.config
    end = [config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else []
    return [[*text, *end] for text in TEXTS]


def generated(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What `generate` answers to all of them in one batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = None
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, pad_token_id=PAD
    )
    answers: list[list[int]] = out[:, width:].tolist()
    return answers


OWN = ("chatglm2", "glm4", "v1_early", "v1_mid", "v1_late")


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for name in OWN for what in ("plain", "lora", "prefix")]
    + [(name, what) for name in HF_FAMILIES for what in ("plain", "lora")],
)
def test_greedy_ids_are_those_of_generate(name: str, what: str, tmp_path: Path) -> None:
    model = put_on(build(name, tmp_path), what)
    prompts = prompts_of(model)
    theirs = generated(model, prompts)
    assert any(len(set(answer)) > 3 for answer in theirs)
    assert complete(model, prompts, GREEDY, stop_ids=[]) == theirs
    assert complete(model, prompts, GREEDY, stop_ids=[], max_rows=1) == theirs
    assert complete(model, prompts, GREEDY, stop_ids=[], max_rows=2) == theirs


WHOLE_BLOCKS: dict[str, dict[str, Any]] = {  # nf4 has blocks of 64
    "chatglm3": {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16},
    "glm4": {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16},
    "chatglm": {"hidden_size": 64, "inner_hidden_size": 128},
}


@pytest.mark.parametrize("what", ["plain", "lora", "prefix"])
@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", WHOLE_BLOCKS)
def test_greedy_ids_of_a_quantised_model_are_those_of_generate(
    name: str, quant: str, what: str, tmp_path: Path
) -> None:
    sizes = WHOLE_BLOCKS[name]
    if name == "chatglm":
        tiny_v1_folder(tmp_path, **sizes)
    else:
        tiny_folder(tmp_path, name, lively=4, **sizes)
    opened = load_model(tmp_path, quant=quant, dtype="fp32").eval()
    assert held_quant(opened) == quant
    model = put_on(opened, what)
    prompts = prompts_of(model)
    theirs = generated(model, prompts)
    assert any(len(set(answer)) > 3 for answer in theirs)
    assert complete(model, prompts, GREEDY, stop_ids=[]) == theirs
    assert complete(model, prompts, GREEDY, stop_ids=[], max_rows=2) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chatglm2", "v1_late"])
def test_a_compiled_step_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path)
    prompts = prompts_of(model)
    engine = Engine(model, max_rows=2, compile_step=True)
    for prompt in prompts:
        engine.submit(Request(prompt, GREEDY))
    answers: list[list[int]] = [[] for _ in prompts]
    while not engine.is_idle:
        for token in engine.step():
            answers[token.request].append(token.id)
    assert answers == complete(model, prompts, GREEDY, stop_ids=[])


def in_int8(model: Any) -> Any:
    quantise_linears(model, 8)
    return model.eval()


@pytest.mark.parametrize(("change", "named"), [(in_int8, "int8"), (speed_up, "compute=fast")])
def test_a_step_that_compiling_slows_down_is_not_compiled(change: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=f"compile_step: a step with the products of {named} is slower"):
        Engine(change(lively_model()), compile_step=True)


def test_a_step_of_transformers_own_models_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compile_step"):
        Engine(build("GLM-4-hf", tmp_path), compile_step=True)


def test_an_attention_function_without_masks_is_refused(tmp_path: Path) -> None:
    model = build("GLM-4-hf", tmp_path)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ConfigError, match="flex_attention"):
        Engine(model)
