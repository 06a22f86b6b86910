"""What `same_outputs.py` has a checkout do: every verb, on glm-tiny and on a tiny model of each family.

Each case is a process of its own, forked from one that has imported torch and its like but nothing of
glmtune; some start the real command line. Its group's folder gets `console/CASE.out`, `.err` and `.code`
beside the files that the case writes.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

Action = Callable[[], object]
MODELS = Path("../../models")
"""Seen from the folder of a group's cases."""
COMMON = (
    "data.max_rows=16", "data.holdout_rows=4", "data.max_tokens=200", "data.overlong=cut_any",
    "train.batch_size=4", "train.micro_batch_size=2", "train.eval_every=2", "train.save_every=1",
    "train.keep_checkpoints=9", "samples.max_new_tokens=6", "retain.ratio=0",
)  # fmt: skip
ADVERTS = "data.train=examples/adverts.jsonl"
FEW = ("data.max_test_rows=3", "evaluate.max_new_tokens=8", "evaluate.batch_size=2")
GREEDY = ("--temperature", "0", "--max-new-tokens", "8")
TALK = "你好\n你是谁？\nclear\nWhat is a shirt?\nstop\n"


@dataclass(frozen=True)
class Case:
    """One command, or one call of Python's interface."""

    name: str
    words: tuple[str, ...] = ()
    typed: str = ""
    act: Action | None = None
    is_process: bool = False
    """Whether the real command line is started, as a shell does."""

    @property
    def verb(self) -> str:
        """What is looked for by `--only`."""
        return self.words[0] if self.words else self.name.partition("-")[0]


def _tiny_training() -> Iterator[Case]:
    """Each method and setting on glm-tiny; the first by the real command line."""
    runs = {
        "lora": ("method.r=4", "train.steps=4"),
        "dora": ("method.use_dora=true", "method.r=2", "method.target_modules=[query_key_value,dense]",
                 "train.steps=2"),
        "rslora": ("method.use_rslora=true", "train.steps=2", "train.gradient_checkpointing=false"),
        "adalora": ("method=adalora", "method.init_r=4", "method.target_r=2", "train.steps=6"),
        "ptuning": ("method=ptuning", "method.num_prefix_tokens=4", "train.steps=4"),
        "projected": ("method=ptuning", "method.num_prefix_tokens=4", "method.projection=true",
                      "train.steps=2"),
        "full": ("method=full", "train.steps=2", "train.keep_checkpoints=1"),
        "freeze": ("method=freeze", "train.steps=2"),
        "int8": ("quant=int8", "train.steps=2"),
        "int4": ("quant=int4", "method=ptuning", "method.num_prefix_tokens=4", "train.steps=2"),
        "bf16": ("dtype=bf16", "train.precision=bf16", "train.steps=2"),
        "patient": ("train.steps=8", "train.lr=1", "train.patience=1", "train.eval_every=1"),
        "talks": ("data.train=examples/chat_history.jsonl", "data.loss=last_turn", "train.steps=2"),
        "taught": ("data.train=examples/identity.json", "data.system=你是一个助手。",
                   "data.source_prefix=问：", "train.steps=2", "train.schedule=cosine",
                   "train.warmup_steps=1", "train.weight_decay=0.1"),
        "official": ("data.encoding=chatglm3", "data.max_tokens=null", "data.max_source_tokens=64",
                     "data.max_target_tokens=64", "train.steps=2"),
        "files": ("data.validation=examples/adverts_heldout.jsonl", "data.max_validation_rows=5",
                  "data.holdout_rows=null", "data.test=examples/adverts_heldout.jsonl", "train.steps=2",
                  "samples.prompts=[]"),
    }  # fmt: skip
    for name, words in runs.items():
        yield Case(
            f"train-{name}",
            ("train", "model=glm-tiny", ADVERTS, *COMMON, *words, f"output=runs/{name}"),
            is_process=name == "lora",
        )
    yield Case(
        "train-on",
        ("train", "model=runs/lora", ADVERTS, *COMMON, "train.steps=2", "train.lr=1e-3", "output=runs/on"),
    )
    for name in ("lora", "adalora", "ptuning", "full"):
        yield Case(f"train-cut-{name}", act=_cutting(name, 1 if name == "full" else 2))
        yield Case(f"train-resumed-{name}", ("train", f"runs/{name}-cut", "--resume"))
    yield Case("train-interrupted", act=_interrupted)
    yield Case("train-gone-on", ("train", "runs/interrupted", "--resume"))
    yield Case("train-finished", ("train", "runs/lora", "--resume"))
    yield Case("train-again", ("train", "runs/lora/recipe.yaml", "output=runs/again"))
    yield Case("train-refused", ("train", "model=glm-tiny", ADVERTS, "output=runs/lora"))
    yield Case("train-unknown", ("train", "model=glm-tiny", ADVERTS, "train.lrr=1"))
    yield Case("train-python", act=_trained_by_python)


def _tiny_verbs() -> Iterator[Case]:
    """What follows a training, on glm-tiny."""
    heldout = ("--data", "examples/adverts_heldout.jsonl")
    yield Case(
        "evaluate-lora", ("evaluate", "runs/lora", *heldout, *FEW, "--output", "scores"), is_process=True
    )
    for run in ("adalora", "ptuning", "full", "freeze", "int8", "files"):
        yield Case(f"evaluate-{run}", ("evaluate", f"runs/{run}", *FEW))
    yield Case("evaluate-fast", ("evaluate", "runs/lora", *FEW, "evaluate.compute=fast", "--output", "fast"))
    yield Case(
        "evaluate-base",
        ("evaluate", "glm-tiny", "--data", "examples/chat_history_heldout.jsonl", *FEW, "--output", "base"),
    )
    yield Case("chat-lora", ("chat", "runs/lora", *GREEDY), TALK, is_process=True)
    for run in ("adalora", "projected", "full", "taught", "int8"):
        yield Case(f"chat-{run}", ("chat", f"runs/{run}", *GREEDY, "--rounds", "1"), TALK)
    for run in ("lora", "ptuning", "full"):
        yield Case(f"chat-both-{run}", ("chat", f"runs/{run}", "--compare", *GREEDY), TALK)
    yield Case(
        "chat-base",
        ("chat", "glm-tiny", *GREEDY, "--quant", "int4", "--system", "短答", "--history", "talk.jsonl"),
        TALK,
    )
    yield Case("chat-fast", ("chat", "runs/lora", *GREEDY, "--compute", "fast"), TALK)
    exports = {
        "lora": ("merged", "hf", "int8", "int4", "official-ptuning"),
        "ptuning": ("merged", "official-ptuning"),
        "adalora": ("merged", "lora-from-adalora"),
        "dora": ("merged",),
        "full": ("hf",),
    }
    for run, kinds in exports.items():
        for kind in kinds:
            words = ("export", f"runs/{run}", "--to", kind)
            yield Case(f"export-{run}-{kind}", words, is_process=(run, kind) == ("lora", "merged"))
    yield Case(
        "export-half",
        (
            "export",
            "runs/lora",
            "--to",
            "merged",
            "--dtype",
            "fp16",
            "--max-shard-size",
            "1MB",
            "--output",
            "half",
        ),
    )
    yield Case("verify-lora", ("verify", "runs/lora"), is_process=True)
    for run in ("dora", "rslora", "adalora", "ptuning", "projected", "full", "freeze", "int8", "int4", "on"):
        yield Case(f"verify-{run}", ("verify", f"runs/{run}"))
    yield Case("verify-checkpoint", ("verify", "runs/lora/checkpoints/step-000002", "--dtype", "bf16"))
    yield Case("verify-damaged", act=_damaged)
    yield Case("info-lora", ("info", "runs/lora", "--names"), is_process=True)
    for run in ("adalora", "ptuning", "full"):
        yield Case(f"info-{run}", ("info", f"runs/{run}", "--json"))
    yield Case("info-base", ("info", "glm-tiny", "method.name=lora", "method.r=4"))
    yield Case("info-export", ("info", "exports/lora-merged"))
    yield Case("compare-runs", ("compare", "runs/lora", "runs/ptuning", "runs/adalora", "--output", "side"),
               is_process=True)  # fmt: skip
    yield Case("compare-at", ("compare", "runs/lora", "runs/on", "runs/talks", "--at", "2", "--output", "at"))
    yield Case("runs-listed", ("runs",))


def _tiny_rest() -> Iterator[Case]:
    """What needs no training, and Python's interface to the engine."""
    yield Case(
        "data-stats", ("data", "stats", "examples/adverts.jsonl", "--model", "glm-tiny"), is_process=True
    )
    yield Case("data-talks", ("data", "stats", "examples/chat_history.jsonl"))
    yield Case(
        "data-convert", ("data", "convert", "examples/chat_history.jsonl", "rows.jsonl", "--to", "messages")
    )
    yield Case("settings-all", ("settings",))
    yield Case(
        "migrate-lora",
        (
            "migrate",
            "../../models/golden/v3/lora",
            "--output",
            "moved",
            "--base",
            "../../models/golden/v3/ckpt",
        ),
    )
    yield Case("python-engine", act=_engine)
    yield Case("python-official", act=_official)


FAMILIES = {
    "chatglm2": ("merged", "hf", "official-ptuning", "int4"),
    "chatglm3": ("hf",),
    "glm4": ("merged", "hf"),
    "v1_early": ("merged",),
    "v1_mid": ("merged",),
    "v1_late": ("merged", "official-ptuning", "int8"),
    "glm4_hf": ("merged",),
    "glm4_0414": ("merged",),
    "glm45": ("merged",),
}
"""Which kinds the runs of each are exported as; a prefix's is its prefix run's."""


def _family(name: str, kinds: tuple[str, ...]) -> Iterator[Case]:
    """The verbs on a tiny model of a family."""
    model, short = f"{MODELS}/{name}", ("train.steps=2", "train.lr=1e-2")
    yield Case(f"info-{name}", ("info", model))
    runs = {
        "lora": (),
        "ptuning": ("method=ptuning", "method.num_prefix_tokens=4"),
        "freeze": ("method=freeze", "method.num_layers=1"),
    }
    for method, words in runs.items():
        if method != "freeze" or name in ("v1_late", "glm45"):
            run = f"output=runs/{name}-{method}"
            yield Case(
                f"train-{name}-{method}", ("train", f"model={model}", ADVERTS, *COMMON, *short, *words, run)
            )
    yield Case(f"evaluate-{name}", ("evaluate", f"runs/{name}-lora", *FEW))
    yield Case(f"chat-{name}", ("chat", f"runs/{name}-lora", "--compare", *GREEDY), TALK)
    yield Case(f"verify-{name}", ("verify", f"runs/{name}-lora"))
    for kind in kinds:
        run = f"runs/{name}-{'ptuning' if kind == 'official-ptuning' else 'lora'}"
        yield Case(f"export-{name}-{kind}", ("export", run, "--to", kind))


GOLDENS = ("v1_early", "v1_mid", "v1_late", "v2", "v3", "glm4")


def _goldens() -> Iterator[Case]:
    """The official code's tiny checkpoints: they have no tokenizer, so Python opens them."""
    for name in GOLDENS:
        folder = MODELS / "golden" / name
        yield Case(f"info-golden-{name}", ("info", str(folder / "ckpt"), "--names"))
        yield Case(f"golden-{name}", act=lambda folder=folder: _logits(folder))  # type: ignore[misc]


def groups() -> dict[str, list[Case]]:
    """All cases, by what `--only` may name beside a verb."""
    return {
        "tiny": [*_tiny_training(), *_tiny_verbs(), *_tiny_rest()],
        **{name: list(_family(name, kinds)) for name, kinds in FAMILIES.items()},
        "goldens": list(_goldens()),
    }


def _cutting(name: str, step: int) -> Action:
    """A copy of a run as a process killed behind a step's checkpoint leaves it."""

    def cut() -> None:
        run = Path("runs") / f"{name}-cut"
        shutil.copytree(Path("runs") / name, run, symlinks=True)
        (run / "eval.json").unlink()
        last = sorted(path for path in (run / "checkpoints").iterdir() if int(path.name[5:]) <= step)
        kept = last[-1] if last else sorted((run / "checkpoints").iterdir())[0]
        (run / "last").unlink()
        (run / "last").symlink_to(f"checkpoints/{kept.name}", target_is_directory=True)
        recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
        moved = re.sub(rf"(?m)^(output: .*){name}$", rf"\g<1>{name}-cut", recipe)
        (run / "recipe.yaml").write_text(moved, encoding="utf-8")

    return cut


def _interrupted() -> None:
    """Ctrl-C in the second step."""
    import signal

    import glmtune
    from glmtune.workflows.events import Stepped

    def hear(event: object) -> None:
        print(type(event).__name__)
        if isinstance(event, Stepped) and event.log.step == 2:
            signal.raise_signal(signal.SIGINT)

    try:
        glmtune.train(
            {"model": "glm-tiny", "data.train": "examples/adverts.jsonl", "output": "runs/interrupted"},
            train={"steps": 4, "batch_size": 2, "eval_every": 2, "save_every": 3, "keep_checkpoints": 9},
            data={"max_rows": 8, "holdout_rows": 2, "max_tokens": 128},
            samples={"prompts": []},
            retain={"ratio": 0},
            on_event=hear,
        )
    except KeyboardInterrupt as err:
        print(type(err).__name__, err)


def _trained_by_python() -> None:
    import glmtune

    done = glmtune.train(
        model="glm-tiny", data="examples/adverts.jsonl", train={"steps": 1}, output="runs/python"
    )
    scored = glmtune.evaluate({"model": "runs/python", "evaluate.max_new_tokens": 4, "data.max_test_rows": 2})
    print(done.path, sorted(done.metrics), scored.path, scored.scores)


def _damaged() -> None:
    """Verify a checkpoint in whose weights one bit has changed."""
    import glmtune

    folder = Path("damaged")
    shutil.copytree("runs/lora/checkpoints/step-000004", folder)
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    try:
        glmtune.verify(folder)
    except glmtune.GlmtuneError as err:
        print(err, err.hint)


def _engine() -> None:
    """Answers of the engine, greedy and drawn, alone and in a batch."""
    import torch

    import glmtune

    model, tokenizer = glmtune.load_model("runs/lora"), glmtune.load_tokenizer("runs/lora")
    for settings in ({"do_sample": False}, {"do_sample": True, "top_k": 5, "repetition_penalty": 1.2}):
        torch.manual_seed(0)
        chat = glmtune.Chat(model, tokenizer, max_new_tokens=12, **settings)
        for question in ("你好", "衬衫", "Hello"):
            print(list(chat.ask(question)))


def _official() -> None:
    """The official code's own calls on a tuned model."""
    import torch

    import glmtune

    model, tokenizer = glmtune.load_model("runs/lora"), glmtune.load_tokenizer("runs/lora")
    answer, history = model.chat(tokenizer, "你好", do_sample=False, max_new_tokens=8)
    print(answer, history)
    print(list(model.stream_chat(tokenizer, "再说", history=history, do_sample=False, max_new_tokens=8)))
    torch.manual_seed(0)
    print(model.chat(tokenizer, "你好", max_new_tokens=8))


def _logits(folder: Path) -> None:
    """Logits, loss and greedy ids of a golden checkpoint, with its adapters and its quantised twins."""
    import torch
    from safetensors.torch import load_file, save_file

    from glmtune import load_model

    ids = load_file(folder / "oracle.safetensors")["full.input_ids"]
    made: dict[str, torch.Tensor] = {}
    adapters = {name: folder / name for name in ("lora", "ckpt_prefix", "ckpt_prefix_proj")}
    opened = {name: (folder / name, None) for name in ("ckpt", "ckpt_int8", "ckpt_int4")}
    opened |= {name: (folder / "ckpt", adapter) for name, adapter in adapters.items()}
    for name, (base, adapter) in opened.items():
        if not (folder / name).is_dir():
            continue
        try:
            model = load_model(base, adapter, dtype="fp32", device="cpu")
        except Exception as err:  # noqa: BLE001 what cannot be opened is an outcome like any other
            print(name, type(err).__name__, err)
            continue
        with torch.no_grad():
            done = model(input_ids=ids, labels=ids)
        made[f"{name}.logits"], made[f"{name}.loss"] = done.logits.contiguous(), done.loss
        made[f"{name}.greedy"] = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
    Path("logits").mkdir(exist_ok=True)
    save_file(made, Path("logits") / f"{folder.name}.safetensors")


def make_models(folder: Path) -> None:
    """A tiny model of each family, random weights; the goldens beside them."""
    from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_v1_folder

    for template in ("chatglm2", "chatglm3", "glm4"):
        tiny_folder(folder / template, template, lively=8)
    for revision in ("early", "mid", "late"):
        tiny_v1_folder(folder / f"v1_{revision}", revision, lively=(12, 12))
    for name, family in zip(("glm4_hf", "glm4_0414", "glm45"), HF_FAMILIES, strict=True):
        tiny_hf_folder(folder / name, family)
    goldens = Path(sys.modules["models"].__file__ or "").parent / "goldens"
    shutil.copytree(goldens, folder / "golden")


def run(jobs: int, wanted: set[str]) -> None:
    """Run all cases below this folder, or those of the groups and verbs that are wanted."""
    every = groups()
    verbs = wanted - every.keys()
    with ThreadPoolExecutor(jobs) as pool:
        done = [
            pool.submit(subprocess.run, [sys.executable, __file__, "group", name, *verbs], check=True)
            for name in every
            if name in wanted or verbs == wanted
        ]
    for one in done:
        one.result()


def run_group(name: str, verbs: set[str]) -> None:
    """Run a group's cases in a folder of its name; of some verbs, also the trainings that they need."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    console = Path(name) / "console"
    console.mkdir(parents=True)
    os.chdir(name)
    alone = {"info", "data", "settings", *(verb for verb in verbs if verb.startswith("train-"))}
    for case in groups()[name]:
        needed = case.verb == "train" and bool(verbs - alone)
        if not verbs or {case.verb, case.name} & verbs or needed:
            _run_case(case, Path("console"))
            print(f"{name}: {case.name}", flush=True)


def _run_case(case: Case, console: Path) -> None:
    files = [(console / f"{case.name}.{end}").open("wb") for end in ("out", "err")]
    if case.is_process:
        done = subprocess.run(
            [sys.executable, "-m", "glmtune", *case.words],
            input=case.typed.encode(), stdout=files[0], stderr=files[1], check=False,
        )  # fmt: skip
        code = done.returncode
    else:
        child = os.fork()
        if not child:
            _be(case, files[0].fileno(), files[1].fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (console / f"{case.name}.code").write_text(f"{code}\n", encoding="utf-8")
    for file in files:
        file.close()


def _be(case: Case, out: int, err: int) -> None:
    """Be a process of the command line, or of Python; never return."""
    read, write = os.pipe()
    os.write(write, case.typed.encode())
    os.close(write)
    for number, to in ((read, 0), (out, 1), (err, 2)):
        os.dup2(number, to)
    random.seed(0)  # a fork draws a new seed
    sys.argv, code = ["glmtune", *case.words], 0
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    try:
        if case.act:
            case.act()
        else:
            from glmtune.cli import main

            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 a process ends with a traceback as well
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "models":
        make_models(Path(sys.argv[2]))
    elif sys.argv[1] == "group":
        run_group(sys.argv[2], set(sys.argv[3:]))
    else:
        run(int(sys.argv[2]), set(sys.argv[3:]))
