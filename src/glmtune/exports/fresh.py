"""A program that loads an export in a fresh process and writes down its logits and greedy ids.

It is run by its path, with the path of a job's JSON file as argument. For an export to plain transformers it
imports only torch and transformers: glmtune is imported only if the job asks for it.
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

if TYPE_CHECKING:  # never at run time: this program shows that an export needs no glmtune
    from glmtune.models.protocol import CausalLM

WeightSource = Callable[[str, Tensor], Tensor]
"""Returns the values to compute with, for a weight's name and the weight."""


@contextmanager
def computing_in_fp32(model: nn.Module, weights: WeightSource = lambda _, weight: weight) -> Iterator[None]:
    """Make every layer compute in fp32 inside the `with` block, with one layer's weights in fp32 at a time.

    Quantised layers stay as they are: they expand their codes themselves. `weights` can give other values.
    """
    hooks = []
    for path, part in model.named_modules():
        # PyTorch's own dict: assigning an attribute would not put a weight of another type in its place
        own = {name: weight for name, weight in part._parameters.items() if weight is not None}
        if own and all(weight.is_floating_point() for weight in own.values()):
            enter, leave = _weight_swaps(path, own, weights)
            hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weight_swaps(path: str, own: dict[str, nn.Parameter], weights: WeightSource) -> tuple[Any, Any]:
    """Return hooks that put fp32 weights into a module before its forward pass and take them out after it."""

    def enter(part: nn.Module, _: object) -> None:
        for name, weight in own.items():
            value = weights(f"{path}.{name}" if path else name, weight).to(weight.device, torch.float32)
            part._parameters[name] = nn.Parameter(value, requires_grad=False)

    def leave(part: nn.Module, _: object, __: object) -> None:
        part._parameters.update(own)

    return enter, leave


@torch.no_grad()
def logits_of(model: nn.Module, ids: list[int], weights: WeightSource = lambda _, weight: weight) -> Tensor:
    """Return the logits of one prompt, (T, V) in fp32."""
    row = torch.tensor([ids])
    with computing_in_fp32(model, weights):
        answer = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    logits: Tensor = answer.logits[0].float()
    return logits


@torch.no_grad()
def continue_greedily(model: "CausalLM", ids: list[int], count: int) -> list[int]:
    """Return the `count` most likely ids after a prompt, one by one, with a KV cache; no id ends it."""
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
"""Functions that load a job's `folder`, on `base` if the folder is an adapter, by the job's `opener`."""


def main(path: Path) -> None:
    """Do the job in a JSON file; write next to it the logits as `.pt`, and the rest as `.answer.json`."""
    job = json.loads(path.read_text(encoding="utf-8"))
    model = OPENERS[job["opener"]](job).eval()
    torch.save([logits_of(model, ids) for ids in job["prompts"]], path.with_suffix(".pt"))
    greedy = [continue_greedily(model, ids, job["new_tokens"]) for ids in job["prompts"]]
    chat_ids: list[int] | None = None
    if job["messages"]:  # the export's own tokenizer and chat template must make the ids that glmtune makes
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            job["folder"], trust_remote_code=False, local_files_only=True
        )
        chat_ids = tokenizer.apply_chat_template(
            job["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    answer = {
        "greedy": greedy,
        "class": type(model).__name__,
        "chat_ids": chat_ids,
        "imports_glmtune": "glmtune" in sys.modules,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    path.with_suffix(".answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
