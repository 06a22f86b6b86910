"""The doctor's look at a model's folder: opened, asked and trained one step, with the figures of each."""

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from glmtune.adapters.probe import all_logits, encode_probe
from glmtune.conversation import encode_messages
from glmtune.data.batches import collate
from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.generate import Sampling, complete
from glmtune.info import Info, inspect
from glmtune.load import choose_type, load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.methods import apply_method
from glmtune.models.device import resolve_device
from glmtune.models.dtype import num_bytes
from glmtune.models.fingerprint import fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.models.shards import scan_tensors
from glmtune.objectives import SftObjective
from glmtune.processor import free_memory
from glmtune.recipe import Data, Lora
from glmtune.templates import Message
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.allocations import CudaMeter, ResidentMeter
from glmtune.training.processes import Processes
from glmtune.workflows.events import Working
from glmtune.workflows.findings import REPORT_IT, Finding, attempt
from glmtune.workflows.remedies import in_words

ASKED, ANSWER = "“白日依山尽”的下一句是什么？", "黄河入海流。"
"""A round that every GLM has read: a poem of the eighth century, 登鹳雀楼. It is likely."""
NUM_LIKELIEST, DECODED_TOKENS = 5, 16


def try_model(
    path: str | Path, *, template: str | None, dtype: str, quant: str | None, device: str
) -> Iterator[Working | Finding]:
    """Open a model, ask it, train it one step of LoRA; yield a finding for each, until one must end it.

    Logits and loss are the same, but for rounding, wherever the same weights are opened in the same types.
    """
    model = _Tried(path, template=template, dtype=dtype, quant=quant, device=device)
    found = yield from attempt("model", "files", model.read_headers)
    if not found.has_failed:
        yield from (Finding("model", "odd", warning) for warning in model.info.warnings)
        found = yield from attempt("model", "load", model.load)
    if not found.has_failed:
        yield from attempt("model", "logits", model.take_logits)
        yield from attempt("model", "decode", model.decode)
        yield from attempt("model", "train", model.train)


def ask(model: CausalLM, tokenizer: Tokenizer, question: str, *, tokens: int) -> tuple[str, float]:
    """Return a model's likeliest answer of so many tokens, cut at its end, and the tokens made a second."""
    prompt, stop_ids = encode_messages(tokenizer, [{"role": "user", "content": question}]), tokenizer.stop_ids
    for count in (2, tokens):  # the first time warms up
        start = time.perf_counter()
        [ids] = complete(model, [prompt], Sampling(do_sample=False, max_new_tokens=count), stop_ids=())
    rate = len(ids) / (time.perf_counter() - start)
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return tokenizer.decode(ids[:end]).strip(), rate


class _Tried:
    """A model that is tried step by step; each step returns its figures in words."""

    info: Info

    def __init__(
        self, path: str | Path, *, template: str | None, dtype: str, quant: str | None, device: str
    ) -> None:
        self._path, self._template, self._dtype, self._quant = path, template, dtype, quant
        self._device = resolve_device(device)

    def read_headers(self) -> str:
        """Read config, headers, tokenizer and a few numbers of the weights, which identify them."""
        self.info = facts = inspect(self._path, template=self._template)
        name = f"{Path(facts.name).name}, {facts.family} {facts.family_revision}".strip()
        tokenizer = facts.tokenizer.kind if facts.tokenizer else "no tokenizer"
        size = in_words(sum(facts.files[file] for file in facts.weight_files))
        kinds = " and ".join(filter(None, (facts.quant, facts.dtype)))
        number = len(facts.weight_files)
        return (
            f"{name}; chat format {facts.template or 'open'} ({facts.template_rule}), {tokenizer}; "
            f"{facts.num_parameters:,} parameters, {kinds}, {size} in {number} file{'s' * (number > 1)}; "
            f"weights {fingerprint(facts.folder).weights[:12]}"
        )

    def load(self) -> str:
        """Load the model, if there is memory for it, and its tokenizer."""
        location = resolve(self._path)
        chosen = choose_type(location, self._dtype, self._device, self._quant)
        stored, free = scan_tensors(location.folder), free_memory(self._device)
        quants = (self._quant, "int8", "int4")
        sizes = {quant: num_bytes(stored, quant, chosen.dtype) for quant in quants}
        if (needed := sizes[self._quant]) > free:  # a process on a CPU would be killed without a word
            fits = next((f"quant={quant}" for quant, size in sizes.items() if size <= free), "")
            least = in_words(min(sizes.values()))
            raise ConfigError(
                f"the weights need about {in_words(needed)}, and {in_words(free)} are free",
                hint=fits or f"take a smaller model, or a machine with more than {least} free",
            )
        with self._meter() as meter:
            model = load_location(
                location,
                template=self._template,
                dtype=chosen,
                device=str(self._device),
                quant=self._quant,
            )
        self._model, self._computing = model.eval(), chosen.computing_name
        self._tokenizer = tokenizer_of(location, template=self._template)
        quant = f"{held_quant(model)} and " if held_quant(model) else ""
        types = f"{quant}{chosen.name}, computes in {chosen.computing_name}"
        return f"{types}, on {model.device}{self._peak(meter)}"

    def take_logits(self) -> str:
        """Return a digest of a fixed prompt's ids, and the likeliest tokens after it with their logits."""
        ids = encode_probe(self._tokenizer)
        logits = all_logits(self._model, ids)[-1]
        if not logits.isfinite().all():
            raise GlmtuneError("the logits of a fixed prompt are not finite", hint="dtype=fp32")
        digest = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:8]
        likeliest = " ".join(f"{i}:{logits[i]:.3f}" for i in logits.topk(NUM_LIKELIEST).indices.tolist())
        return f"{len(ids)} ids {digest}; likeliest {likeliest}; mean {logits.mean():.4f}"

    def decode(self) -> str:
        """Return the answer to a fixed question, and the speed."""
        with self._meter() as meter:
            answer, rate = ask(self._model, self._tokenizer, ASKED, tokens=DECODED_TOKENS)
        return f"{rate:,.1f} tokens/s{self._peak(meter)}; {ASKED} {answer!r}"

    def train(self) -> str:
        """Return loss and gradient of a row of one round, with new LoRA weights, which change no logit."""
        round_ = (Message("user", ASKED), Message("assistant", ANSWER))
        row = encode_examples(self._tokenizer, [Example(round_, "doctor")], Data()).rows[-1]
        batch = collate([row], self._tokenizer.pad_token_id)
        processes = Processes(self._device, precision=self._computing)
        devices = [processes.device] if self._device.type == "cuda" else []
        with self._meter() as meter, torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)  # of the new weights and of dropout: the same gradient each time
            objective = SftObjective(apply_method(self._model, Lora()))
            with processes.autocast(), objective.passes():
                loss = objective(batch.to(processes.device)) / objective.weight(batch)
                loss.backward()
        total = float(loss.detach())
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        norm = math.hypot(*(float(gradient.float().norm()) for gradient in gradients))
        if not 0 < norm < math.inf:
            raise GlmtuneError(f"the gradient norm of a row is {norm}", hint=REPORT_IT)
        size = f"{len(row.input_ids)} tokens, {objective.weight(batch)} learned"
        perplexity = f"loss {total:.4f}, perplexity {math.exp(total):,.2f}"
        return f"a row of {size}: {perplexity}, gradient {norm:.4f}{self._peak(meter)}"

    def _meter(self) -> CudaMeter | ResidentMeter:
        return CudaMeter(self._device) if self._device.type == "cuda" else ResidentMeter()

    @staticmethod
    def _peak(meter: CudaMeter | ResidentMeter) -> str:
        return f", peak memory +{in_words(meter.peak)}" if meter.peak else ""
