"""A side of `benchmarks.train` in a process of its own: takes training steps when it is told to.

    python -m benchmarks.trainers SPEC.json     # then a line of JSON on stdin for each turn

- `ours`: `glmtune train` itself, event by event;
- `peer`: transformers' class of the same architecture, PEFT's LoRA and HF Trainer, each batch padded to its
  longest row;
- `prefixed`: the same with a prefix as `past_key_values`.
"""

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from ctypes import CDLL
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Spec = Mapping[str, Any]
MIB = 2**20
LOOK_S = 0.001
IGNORED = -100


class Steps(Protocol):
    """Whoever is told of the steps of a side."""

    def hold(self) -> None:
        """The model stands; nothing has run through it."""

    def wait(self, **facts: object) -> None:
        """The first step comes next."""

    def step(self, loss: float) -> None:
        """A step is done."""


class Pace:
    """What the side is told and what it answers; it stands still in between."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")  # whatever else is printed goes to the log
        os.dup2(2, 1)
        self._held = 0
        self._left = 0
        self._losses: list[float] = []
        self._start = 0.0
        self._peak: Callable[[], int] | None = None

    def hold(self) -> None:
        """Count from here on as the memory of the steps: the model stands, nothing has run through it."""
        self._held = resting_bytes()

    def wait(self, **facts: object) -> None:
        """Answer, and return when the next steps are due; never, once the other end has closed."""
        print(json.dumps(facts), file=self._answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # HF Trainer is a call that only its last step ends
        told = json.loads(line)
        self._left, self._losses = told["steps"], []
        resting_bytes()  # what was freed so far is no memory of these steps
        self._peak = watch_memory() if told["is_watched"] else None
        self._start = time.perf_counter()

    def step(self, loss: float) -> None:
        """Count a step; answer after the last of those that were due."""
        self._losses.append(loss)
        if len(self._losses) < self._left:
            return
        seconds = time.perf_counter() - self._start
        memory = {"memory_mib": (self._peak() - self._held) / MIB} if self._peak else {}
        self.wait(seconds=seconds, losses=self._losses, **memory)


def anonymous_bytes() -> int:
    """This process's own memory; files that are mapped, as weights may be, not counted."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")) * 1024


def resting_bytes() -> int:
    """The same once all that was freed has gone back to the system."""
    gc.collect()
    CDLL(None).malloc_trim(0)
    return anonymous_bytes()


def watch_memory() -> Callable[[], int]:
    """Look at the memory every millisecond until the highest is asked for."""
    peak, done = anonymous_bytes(), threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(LOOK_S):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()

    def finish() -> int:
        done.set()
        watcher.join()
        return peak

    return finish


def run_ours(spec: Spec, pace: Steps) -> None:
    """Train by a recipe, as the command does but for its printing."""
    import matplotlib.pyplot  # noqa: F401  # which the first picture of the loss imports: no memory of a step

    from glmtune.log import quiet
    from glmtune.recipe import load_recipe
    from glmtune.workflows.events import Evaluated, FirstRow, Stepped
    from glmtune.workflows.execute import training

    recipe = load_recipe(spec["recipe"])
    with quiet():
        for event in training(recipe):
            if isinstance(event, FirstRow):  # the model stands
                pace.hold()
            elif isinstance(event, Evaluated) and event.step == 0:
                pace.wait(ready=True)
            elif isinstance(event, Stepped):
                pace.step(event.log.loss)


def run_peer(spec: Spec, pace: Steps) -> None:
    """LoRA by PEFT on transformers' class."""
    from peft import LoraConfig, get_peft_model

    model = load_peer(spec)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **spec["lora"]))
    if initial := spec.get("initial"):
        set_first_factors(tuned, torch.load(initial))
    train_with_hf(tuned, spec, pace)


def load_peer(spec: Spec) -> Any:
    """The peer's model, from its own folder."""
    import transformers

    kind = getattr(transformers, spec["class"])
    return kind.from_pretrained(spec["folder"], dtype=getattr(torch, spec["dtype"]))


@torch.no_grad()
def set_first_factors(tuned: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Let LoRA begin with our factors A: those of `query_key_value` are those of all three of its parts."""
    for name, weight in tuned.named_parameters():
        if "lora_A" in name:
            layer, *_, target = name.partition(".lora_A")[0].partition("layers.")[2].split(".")
            own = f"{layer}.{target}"
            weight.copy_(factors[own if own in factors else f"{layer}.query_key_value"])


class Prefixed(nn.Module):
    """A frozen model behind a learned prefix of keys and values (P-Tuning v2), the usual way."""

    def __init__(self, model: Any, first: Tensor) -> None:
        """`first`: (P, 2 L G D), the order in which the official code has them."""
        super().__init__()
        self.model = model.requires_grad_(False)
        self.config = model.config
        self.prefix = nn.Parameter(first.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **told: Any) -> Any:
        """Of padded rows: each begins at position 0 behind the prefix, which the mask leaves in sight."""
        from transformers import DynamicCache

        rows, length = input_ids.shape
        config = self.config
        sizes = (2 * config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        drawn = self.prefix.to(self.model.dtype).expand(rows, -1, -1).unflatten(-1, sizes)
        keys_values = drawn.permute(2, 0, 3, 1, 4).unflatten(0, (-1, 2))  # (L, 2, B, G, P, D)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(keys_values):
            cache.update(keys, values, layer)
        in_sight = attention_mask.new_ones(rows, len(self.prefix))
        return self.model(
            input_ids=input_ids,
            attention_mask=torch.cat([in_sight, attention_mask], dim=1),
            position_ids=torch.arange(length)[None].expand(rows, -1),
            past_key_values=cache,
            labels=labels,
            **told,
        )


def run_prefixed(spec: Spec, pace: Steps) -> None:
    """P-Tuning v2 on transformers' class."""
    train_with_hf(Prefixed(load_peer(spec), torch.load(spec["initial"])), spec, pace)


def train_with_hf(model: nn.Module, spec: Spec, pace: Steps) -> None:
    """Train with HF Trainer, on the rows that ours takes, in its order."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Told(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.hold()
            pace.wait(ready=True)

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            if "loss" in logs:  # the last of all has none
                pace.step(logs["loss"])

    rows = json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))
    usual = {
        "output_dir": f"{spec['folder']}-run", "use_cpu": True, "report_to": [], "logging_steps": 1,
        "disable_tqdm": True, "train_sampling_strategy": "sequential", "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = TrainingArguments(**{**usual, **spec["arguments"]})
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{name: torch.tensor(ids) for name, ids in row.items()} for row in rows],
        data_collator=lambda batch: pad(batch, spec.get("pad_to")),
        callbacks=[Told()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def pad(rows: list[dict[str, Tensor]], width: int | None) -> dict[str, Tensor]:
    """A batch, padded on the right to its longest row, or to a width."""

    def filled(name: str, value: int) -> Tensor:
        longest = pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        missing = max(0, (width or 0) - longest.shape[1])
        return nn.functional.pad(longest, (0, missing), value=value)

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    ids = filled("input_ids", 0)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": filled("labels", IGNORED)}


KINDS: dict[str, Callable[[Spec, Steps], None]] = {
    "ours": run_ours,
    "peer": run_peer,
    "prefixed": run_prefixed,
}


def main() -> None:
    """Be the side that the file describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path)
    spec = json.loads(parser.parse_args().spec.read_text(encoding="utf-8"))
    pace = Pace()
    torch.set_num_threads(spec["threads"])
    KINDS[spec["kind"]](spec, pace)


if __name__ == "__main__":
    main()
