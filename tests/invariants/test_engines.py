"""Laws of runs whose work or weights are shared over processes: the same figures as of one process."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.cluster_tables import ZERO_2, Model, sent

from forks import run_ranks
from glmtune import load_model
from glmtune.errors import ConfigError
from glmtune.extras import is_installed
from glmtune.models.recomputing import layers_of
from glmtune.recipe.distributed import DeepSpeed
from glmtune.run_files import read_json_lines
from glmtune.workflows.early import training_recipe
from glmtune.workflows.events import drain
from glmtune.workflows.execute import training
from glmtune.workflows.forecast import forecast, this_machine
from glmtune.workflows.plan import planning
from glmtune.workflows.sharing import require_shareable
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
METHODS = {
    "lora": ["method=lora", "method.dropout=0"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4", "method.dropout=0"],
    "full": ["method=full"],
}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def words(model: Path, output: Path, *more: str) -> list[str]:
    return [
        f"model={model}", f"output={output}", f"data.train={ADVERTS}", "data.max_tokens=400",
        "data.max_rows=40", "data.holdout_rows=4", "train.steps=10", "train.lr=1e-3", "train.eval_every=10",
        "train.batch_size=5", "train.micro_batch_size=2", "samples.prompts=[]", "retain.report=off",
        "retain.ratio=0", *more,
    ]  # fmt: skip


def steps(run: Path) -> list[dict[str, float]]:
    return [line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "last").resolve().glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_steps(run: Path, other: Path, *, rel: float) -> None:
    assert len(steps(run)) == len(steps(other)) == 10
    for line, expected in zip(steps(run), steps(other), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=rel)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=rel)
        assert line["tokens"] == expected["tokens"]


def go_back_to_step_5(run: Path) -> None:
    """As a run that was killed in a later step."""
    (run / "last").unlink()
    shutil.rmtree(run / "checkpoints" / "step-000010")
    (run / "last").symlink_to("checkpoints/step-000005")


ENGINES = {
    "ddp": ["distributed=ddp"],
    "fsdp2": ["distributed=fsdp2"],
    "zero-2": ["distributed=deepspeed"],
    "zero-3": ["distributed=deepspeed", "distributed.stage=3"],
    "zero-2, offloaded": ["distributed=deepspeed", "distributed.offload_optimizer=true"],
    "zero-3, offloaded": [
        "distributed=deepspeed", "distributed.stage=3", "distributed.offload_optimizer=true",
        "distributed.offload_weights=true",
    ],
}  # fmt: skip
ZERO = (
    SLOW,
    pytest.mark.skipif(
        not is_installed("deepspeed"), reason="needs DeepSpeed: pip install 'glmtune[deepspeed]'"
    ),
)
ZEROS = [pytest.param(f"zero-{stage}", marks=ZERO) for stage in (2, 3)]
SHARED = [
    ("fsdp2", "lora"),
    *(pytest.param(f"zero-{stage}", method, marks=ZERO) for stage in (2, 3) for method in METHODS),
    *(pytest.param(f"zero-{stage}, offloaded", "full", marks=ZERO) for stage in (2, 3)),
    *(pytest.param("fsdp2", method, marks=SLOW) for method in ("ptuning", "full")),
    *(pytest.param("ddp", method, marks=SLOW) for method in ("ptuning", "full")),
]


@pytest.mark.parametrize(("engine", "method"), SHARED)
def test_two_processes_of_an_engine_equal_one(model: Path, tmp_path: Path, engine: str, method: str) -> None:
    drain(training(training_recipe({}, words(model, tmp_path / "one", *METHODS[method]))))
    given = words(model, tmp_path / "two", *METHODS[method], *ENGINES[engine])
    done = run_ranks(2, "-m", "glmtune", "train", *given, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert_same_steps(tmp_path / "two", tmp_path / "one", rel=1e-6)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # whole, under the published names
    assert {name: part.shape for name, part in two.items()} == {
        name: part.shape for name, part in one.items()
    }
    load_model(tmp_path / "two")  # refuses what does not give the logits that the processes gave together


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "engine",
    [pytest.param("fsdp2", marks=SLOW), *ZEROS],
)
def test_a_resumed_run_of_shared_weights_equals_an_uninterrupted_one_to_the_bit(
    model: Path, tmp_path: Path, engine: str, method: str
) -> None:
    """Dropout on, so two runs of as many processes are equal, too."""
    drop = ["method.dropout=0.1"] if method == "lora" else []
    shared = [*METHODS[method], *drop, *ENGINES[engine], "train.eval_every=5"]

    def train(*given: str) -> None:
        done = run_ranks(2, "-m", "glmtune", "train", *given, encoding="utf-8")
        assert done.returncode == 0, done.stderr

    for name in ("whole", "parts"):
        train(*words(model, tmp_path / name, *shared))
    parts = tmp_path / "parts"
    go_back_to_step_5(parts)
    train(str(parts), "--resume")
    lines = ("step", "loss", "grad_norm", "eval_loss")
    whole, gone_on = (
        [[line.get(name) for name in lines] for line in read_json_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert gone_on == whole
    first, second = weights(tmp_path / "whole"), weights(parts)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@SLOW
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("engine", ["fsdp2", *ZEROS])
def test_a_run_goes_on_with_another_engine_and_number_of_processes(
    model: Path, tmp_path: Path, engine: str, method: str
) -> None:
    one, two = (words(model, tmp_path / name, *METHODS[method]) for name in ("one", "two"))
    drain(training(training_recipe({}, [*one, "train.eval_every=5"])))

    def go_on(number: int, *given: str) -> None:
        done = run_ranks(number, "-m", "glmtune", "train", *given, encoding="utf-8")
        assert done.returncode == 0, done.stderr

    for begun, then in ((ENGINES[engine], ENGINES["ddp"]), (ENGINES["ddp"], ENGINES[engine])):
        shutil.rmtree(tmp_path / "two", ignore_errors=True)
        number = 1 if begun == ENGINES["ddp"] else 2
        go_on(number, *two, *begun, "train.eval_every=5")
        go_back_to_step_5(tmp_path / "two")
        go_on(3 - number, str(tmp_path / "two"), *then, "--resume")
        assert_same_steps(tmp_path / "two", tmp_path / "one", rel=1e-6)
        load_model(tmp_path / "two")


@pytest.mark.parametrize("engine", [pytest.param("fsdp2", marks=SLOW), *ZEROS])
@pytest.mark.parametrize(
    ("method", "is_silent", "told"),
    [
        ("lora", False, "step 2: the loss is nan, first in transformer.encoder.layers.0.self_attention at "),
        ("full", False, "step 2: the loss is nan, first in transformer.encoder.layers.0.self_attention"),
        ("lora", True, "step 1: the gradient is exactly 0, it ends at the gradient of the output of "),
    ],
)
def test_a_bad_step_is_traced_to_the_layer_and_row_of_one_process(
    model: Path, tmp_path: Path, engine: str, method: str, is_silent: bool, told: str
) -> None:
    """`is_silent`: the last norm gives zeros, so that nothing reaches the loss."""
    base = shutil.copytree(model, tmp_path / "model")
    if is_silent:
        [file] = base.glob("*.safetensors")
        tensors = load_file(file)
        tensors["transformer.encoder.final_layernorm.weight"].zero_()
        save_file(tensors, file, metadata={"format": "pt"})
    errors = {}
    for number in (1, 2):
        shared = ENGINES[engine] if number == 2 else []
        given = words(base, tmp_path / str(number), *METHODS[method], *shared, "train.lr=1e20")
        done = run_ranks(number, "-m", "glmtune", "train", *given, encoding="utf-8")
        assert done.returncode == 2, done.stderr
        errors[number] = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert errors[2] == errors[1]
    assert told in errors[1]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("engine", [pytest.param("fsdp2", marks=SLOW), *ZEROS])
def test_replay_on_shared_weights_is_that_of_one_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, method: str
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    replay = [*METHODS[method], "retain.ratio=0.25", "retain.max_new_tokens=8", "train.batch_size=4"]
    drain(training(training_recipe({}, words(model, tmp_path / "one", *replay))))
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache of two"))
    given = words(model, tmp_path / "two", *replay, *ENGINES[engine])
    done = run_ranks(2, "-m", "glmtune", "train", *given, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    one, two = (read_json_lines(tmp_path / name / "replay.jsonl") for name in ("one", "two"))
    assert one
    assert [line["answer_ids"] for line in two] == [line["answer_ids"] for line in one]
    assert_same_steps(tmp_path / "two", tmp_path / "one", rel=1e-6)
    load_model(tmp_path / "two")


COUNTING = """
import sys
from collections import Counter
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from glmtune.workflows.early import training_recipe
from glmtune.workflows.events import Stepped
from glmtune.workflows.execute import training

class Collectives(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            size = max((part.nbytes for part in tree_leaves(args) if isinstance(part, Tensor)), default=0)
            # a step's figures aside, such as its loss: 16 bytes and less. An all-reduce sends all twice
            self.moved += size * (1 + ("allreduce" in func.__name__)) * (size > 16)
        return func(*args, **kwargs or {})

with Collectives() as collectives:
    for event in training(training_recipe({}, sys.argv[1:])):
        if isinstance(event, Stepped):
            if event.log.step == 3 and torch.distributed.get_rank() == 0:
                print("moved", collectives.moved, file=sys.stderr)
            collectives.moved = 0
"""
COUNTED = {"ddp": "ddp", "fsdp2": "fsdp2", "zero-2": ZERO_2, "zero-3": "deepspeed, stage 3"}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=SLOW), "fsdp2", *ZEROS])
def test_a_step_moves_the_bytes_of_the_table(model: Path, tmp_path: Path, engine: str, method: str) -> None:
    """Those of the third, of one micro-batch: in the first two DDP agrees on its buckets."""
    more = ["train.steps=4", "train.eval_every=4", "train.batch_size=2"]
    kind = ["dtype=bf16"] if method == "lora" else []  # as the table has a frozen base
    given = words(model, tmp_path / "run", *METHODS[method], *ENGINES[engine], *more, *kind)
    done = run_ranks(2, "-c", COUNTING, *given, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    whole = load_model(model)
    weights = sum(weight.numel() for weight in whole.parameters())
    inner = sum(weight.numel() for layer in layers_of(whole) for weight in layer.parameters())
    # rank 8 on query_key_value, (32 -> 64) in two layers
    tiny = Model("tiny", weights, weights - inner, 2 * 8 * (32 + 64))
    [moved] = re.findall(r"moved (\d+)", done.stderr)
    assert int(moved) / 2 == sent(tiny, method, COUNTED[engine], 2)


SHARING = """
import json, sys
from pathlib import Path
import torch
from glmtune import load_model
from glmtune.methods import apply_method
from glmtune.objectives import SftObjective
from glmtune.recipe import Full, Train
from glmtune.recipe.distributed import Fsdp2
from glmtune.training.allocations import trim_heap
from glmtune.training.optim import build_optimizer
from glmtune.training.processes import Processes
from glmtune.training.state import read_state, write_state

def own_bytes():
    trim_heap()  # of what is free already
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

processes = Processes(engine=Fsdp2())
model = apply_method(load_model(sys.argv[1], dtype="fp32", device="cpu"), Full())
objective = SftObjective(model)
optimizer = processes.share(objective, lambda: build_optimizer(model, Train(lr=1e-3)))
for weight in objective.parameters():
    weight.grad = torch.ones_like(weight)
optimizer.step()
optimizer.zero_grad()
folder = Path(sys.argv[2])
"""
SAVING = """
def gathered():
    before = own_bytes()
    state = processes.optimizer_state(optimizer)
    with processes.whole():
        weights = [weight.detach().clone() for weight in model.parameters()] if processes.is_main else []
        total = sum(weight.nbytes for weight in weights)
        del weights
        tensors = [*state["state"].values(), dict(model.named_parameters())]
        sums = [float(each.sum(dtype=torch.float64)) for part in tensors for each in part.values()]
        return own_bytes() - before, total, sums

in_memory = gathered()
with processes.gathering_in(folder):
    in_files = gathered()
if processes.is_main:
    assert in_files[2] == in_memory[2]
    print(json.dumps({"memory": in_memory[0], "files": in_files[0], "weights": in_memory[1]}))
assert not list(folder.iterdir()) or not processes.is_main
"""
RESTORING = """
parts = {name: weight.detach().to_local() for name, weight in model.named_parameters()}
saved = {name: part.clone() for name, part in parts.items()}
with processes.whole():
    held = {name: weight.detach().clone() for name, weight in model.named_parameters()}
state = processes.optimizer_state(optimizer)
means = [value.to_local().clone() for each in optimizer.state.values() for value in list(each.values())[1:]]
if processes.is_main:
    keys = {"schedule": {}, "random": [{}], "standing": {"step": 1}}
    write_state({"optimizer": state, **keys}, folder)
    torch.save(held, folder / "held.pt")
del state, held
processes.wait()
for part in parts.values():
    part.zero_()
before = own_bytes()
state = read_state(folder, step=1)
with processes.gathering_in(folder), processes.whole(is_changed=True):
    if processes.is_main:
        held = torch.load(folder / "held.pt", mmap=True)
        for name, weight in model.named_parameters():
            weight.detach().copy_(held[name])
    taken = own_bytes() - before
assert all(torch.equal(part, saved[name]) for name, part in parts.items())
processes.restore_optimizer(optimizer, state["optimizer"])
again = [value.to_local() for each in optimizer.state.values() for value in list(each.values())[1:]]
assert all(map(torch.equal, means, again)) and len(again) == len(means) > 0
taken = max(processes.gather(max(taken, own_bytes() - before)))
if processes.is_main:
    print(json.dumps({"taken": taken, "weights": sum(4 * w.numel() for w in model.parameters())}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 512, "ffn_hidden_size": 1024, "num_layers": 6}
    return tiny_folder(tmp_path_factory.mktemp("large"), **shape)


def taken_by_two(script: str, large: Path, folder: Path) -> dict[str, int]:
    done = run_ranks(2, "-c", SHARING + script, str(large), str(folder), encoding="utf-8")
    assert done.returncode == 0, done.stderr
    taken: dict[str, int] = json.loads(done.stdout)
    return taken


READS_STATUS = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")


@READS_STATUS
def test_what_is_saved_of_shared_weights_takes_no_main_memory(large: Path, tmp_path: Path) -> None:
    """But one tensor at a time; without files all weights and both of AdamW's means."""
    taken = taken_by_two(SAVING, large, tmp_path)
    assert taken["memory"] > 2.5 * taken["weights"]
    assert taken["files"] < 0.3 * taken["weights"]


@READS_STATUS
def test_what_is_restored_of_shared_weights_takes_no_main_memory(large: Path, tmp_path: Path) -> None:
    """But one tensor at a time, in every process, and each goes on with its own parts."""
    taken = taken_by_two(RESTORING, large, tmp_path)
    assert taken["taken"] < 0.3 * taken["weights"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["quant=int8"], "distributed.name: fsdp2, but quant=int8: codes are not shared out"),
        (["method=adalora"], "distributed.name: fsdp2, but method=adalora: its pruning ranks"),
        (["method.use_dora=true"], "distributed.name: fsdp2, but method.use_dora=true"),
        ([*ENGINES["zero-2"], "method=adalora"], "distributed.name: deepspeed, but method=adalora"),
        ([*ENGINES["zero-3"], "quant=int8"], "distributed.name: deepspeed, but quant=int8"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(
    model: Path, tmp_path: Path, given: list[str], told: str
) -> None:
    recipe = training_recipe({}, words(model, tmp_path / "run", "distributed=fsdp2", *given))
    plan = drain(planning(recipe, begins=False))
    with pytest.raises(ConfigError, match=re.escape(told)):
        require_shareable(plan)


def test_shared_weights_of_a_single_process_are_refused(model: Path, tmp_path: Path) -> None:
    recipe = training_recipe({}, words(model, tmp_path / "run", "distributed=fsdp2"))
    with pytest.raises(ConfigError, match="this is one process, with none to share weights with"):
        drain(training(recipe))


def test_stage_2_keeps_whole_weights_on_the_card() -> None:
    with pytest.raises(ValueError, match="stage 2 computes with whole weights; set stage=3"):
        DeepSpeed(offload_weights=True)


def test_a_forecast_counts_means_that_zero_2_shares(model: Path, tmp_path: Path) -> None:
    given = words(model, tmp_path / "run", "method=full", *ENGINES["zero-2"])
    plan = drain(planning(training_recipe({}, given), begins=False))
    one = forecast(plan, this_machine()).phases[0].parts
    plan.processes.number = 2
    two = forecast(plan, this_machine()).phases[0].parts
    assert two["weights"] == one["weights"]
    assert (two["gradients"], two["optimizer"]) == (one["gradients"] // 2, one["optimizer"] // 2)


def test_a_forecast_counts_what_a_process_holds_of_shared_weights(model: Path, tmp_path: Path) -> None:
    def parts(engine: str, number: int) -> Mapping[str, int]:
        given = words(model, tmp_path / "run", "method=full", f"distributed={engine}")
        plan = drain(planning(training_recipe({}, given), begins=False))
        plan.processes.number = number
        return forecast(plan, this_machine()).phases[0].parts

    whole, shared = parts("ddp", 1), parts("fsdp2", 2)
    for name in ("weights", "gradients", "optimizer"):
        assert shared[name] == whole[name] // 2
    assert 0 < shared["gathered"] <= whole["weights"]  # of two layers
