"""A program of its own: open an export in a process that knows nothing of its making; say what it answers.

Run by its path, with a job's file as its word. For an export to plain transformers it imports torch and
transformers alone: glmtune is imported only where the job says so.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # importing it would be what this program must not do, see above
    from glmtune.models.protocol import CausalLM

WeightSource = Callable[[str, Tensor], Tensor]
"""Gives the values to compute with for a weight's name and the weight."""


@contextmanager
def computing_in_fp32(model: nn.Module, weights: WeightSource = lambda _, held: held) -> Iterator[None]:
    """Inside, every layer computes with its weights in fp32; at any time only one layer's are held so.

    Quantised layers stay as they are: they expand their codes themselves. `weights` gives other values.
    """
    hooks = []
    for path, part in model.named_modules():
        own = {name: held for name, held in part._parameters.items() if held is not None}
        if own and all(held.is_floating_point() for held in own.values()):
            enter, leave = _exchange(path, own, weights)
            hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _exchange(path: str, own: dict[str, nn.Parameter], weights: WeightSource) -> tuple[Any, Any]:
    def enter(part: nn.Module, _: Any) -> None:
        for name, held in own.items():
            value = weights(f"{path}.{name}" if path else name, held).to(held.device, torch.float32)
            part._parameters[name] = nn.Parameter(value, requires_grad=False)

    def leave(part: nn.Module, _: Any, __: Any) -> None:
        part._parameters.update(own)

    return enter, leave


@torch.no_grad()
def logits_of(model: nn.Module, ids: list[int], weights: WeightSource = lambda _, held: held) -> Tensor:
    """The logits of one row of ids, (T, V) in fp32."""
    row = torch.tensor([ids])
    with computing_in_fp32(model, weights):
        answer = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    logits: Tensor = answer.logits[0].float()
    return logits


@torch.no_grad()
def continue_greedily(model: "CausalLM", ids: list[int], count: int) -> list[int]:
    """The `count` most likely ids after a row, one after the other, through the cache; none ends it."""
    row = torch.tensor([ids])
    model.generation_config.eos_token_id = None
    with computing_in_fp32(model):
        whole = model.generate(
            input_ids=row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count
        )
    new: list[int] = whole[0, len(ids) :].tolist()
    return new


def _open_plain(job: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype="auto", trust_remote_code=False, local_files_only=True
    )


def _open_in_glmtune(job: dict[str, Any]) -> Any:
    from glmtune.load import load_model
    from glmtune.models.published_weights import stored_dtype

    base = Path(job["base"] or job["folder"])
    adapter = job["folder"] if job["base"] else None
    kind = stored_dtype(base)
    return load_model(base, adapter=adapter, template=job["template"], dtype=kind, device="cpu")


def _open_in_peft(job: dict[str, Any]) -> Any:
    from glmtune.adapters.to_lora import wrap_in_peft

    return wrap_in_peft(_open_in_glmtune({**job, "folder": job["base"], "base": None}), job["folder"])


OPENERS = {"plain": _open_plain, "glmtune": _open_in_glmtune, "peft": _open_in_peft}
"""How a job's `opener` opens its `folder`, on `base` if that is one's adapter."""


def _chat_ids(job: dict[str, Any]) -> list[int] | None:
    """The ids of the job's messages by the folder's own tokenizer and template, if it is asked for."""
    if not job["messages"]:
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=False, local_files_only=True)
    ids: list[int] = tokenizer.apply_chat_template(
        job["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def main(path: Path) -> None:
    """Do the job in a file; its answers go beside it: logits as a tensor, the rest as JSON."""
    job = json.loads(path.read_text(encoding="utf-8"))
    model = OPENERS[job["opener"]](job).eval()
    torch.save([logits_of(model, ids) for ids in job["prompts"]], path.with_suffix(".pt"))
    answer = {
        "greedy": [continue_greedily(model, ids, job["new_tokens"]) for ids in job["prompts"]],
        "class": type(model).__name__,
        "chat_ids": _chat_ids(job),
        "imports_glmtune": "glmtune" in sys.modules,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    path.with_suffix(".answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
