"""Native models wrapped by PEFT: every way of asking them for an answer."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from glmtune.conversation import encode_messages
from glmtune.generate import Sampling, complete
from glmtune.models import load_base
from glmtune.models.positions import positions_of
from glmtune.models.wrapped import causal_of, is_hooked
from glmtune.objectives import SftObjective
from glmtune.tokenizers import read_tokenizer
from models import as_batch, letters_only, tiny_folder, tiny_v1_folder

KINDS = ("early", "mid", "late", "chatglm2", "chatglm3", "glm4")
STEPS = 8


@pytest.fixture(scope="module", params=KINDS)
def wrapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A LoRA model whose adapter is not zero, and its tokenizer."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    is_v1 = request.param in ("early", "mid", "late")
    (tiny_v1_folder if is_v1 else tiny_folder)(folder, request.param)
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(load_base(folder, dtype="fp32", device="cpu"), settings)
    return model.eval(), read_tokenizer(folder)


def test_the_model_inside_is_found_from_the_wrapper_and_from_itself(wrapped: tuple[Any, Any]) -> None:
    model, _ = wrapped
    inner = model.get_base_model()
    assert causal_of(model) is causal_of(inner) is inner is positions_of(model) is positions_of(inner)
    plain = nn.Linear(1, 1)
    assert causal_of(plain) is plain


def test_chat_stream_chat_generate_and_the_decoder_agree(wrapped: tuple[Any, Any]) -> None:
    model, tokenizer = wrapped
    ids = torch.tensor([encode_messages(tokenizer, [{"role": "user", "content": "早"}])])
    settings: dict[str, Any] = {"do_sample": False, "max_length": ids.shape[1] + STEPS}
    sampling = Sampling(do_sample=False, max_new_tokens=STEPS)
    (decoded,) = complete(model, ids.tolist(), sampling, stop_ids=tokenizer.stop_ids)
    generated = model.generate(
        input_ids=ids, eos_token_id=tokenizer.stop_ids, pad_token_id=tokenizer.pad_token_id, **settings
    )
    assert generated[0, ids.shape[1] :].tolist() == decoded
    settings["logits_processor"] = letters_only(model, tokenizer)
    answer, history = model.chat(tokenizer, "早", **settings)
    *_, streamed = model.stream_chat(tokenizer, "早", **settings)
    assert streamed == (answer, history)
    assert answer


def test_the_loss_is_the_same_from_the_wrapper_and_from_inside(wrapped: tuple[Any, Any]) -> None:
    model, tokenizer = wrapped
    ids = torch.tensor([encode_messages(tokenizer, [{"role": "user", "content": "早"}])])
    batch = as_batch(ids, ids, torch.ones_like(ids))
    with torch.no_grad():
        assert torch.equal(SftObjective(model)(batch), SftObjective(model.get_base_model())(batch))


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_of_any_kind_is_seen_and_seen_to_be_gone(kind: str) -> None:
    part = nn.Linear(1, 1)
    assert not is_hooked(part)
    handle = getattr(part, f"register_{kind}_hook")(lambda *_: None)
    assert is_hooked(part)
    handle.remove()
    assert not is_hooked(part)


def test_a_forward_of_the_instance_is_seen() -> None:
    part: Any = nn.Linear(1, 1)
    part.forward = lambda x: x
    assert is_hooked(part)
