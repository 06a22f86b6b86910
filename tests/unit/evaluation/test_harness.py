"""lm-eval asks a model of ours: likelihoods and texts are the model's own. Needs glmtune[lm-eval]."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'glmtune[lm-eval]'")

from forks import run_ranks
from glmtune import load_model, load_tokenizer
from glmtune.errors import ConfigError
from glmtune.evaluation.harness import HarnessModel
from glmtune.recipe.parse import build_recipe
from glmtune.training.processes import Processes
from glmtune.workflows.events import drain
from glmtune.workflows.tasks import asking_tasks

PAIRS = [("白日依山尽，", "黄河入海流"), ("The sky is ", "blue and wide."), ("", "你好"), ("1 + 1 =", " 2")]


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.fixture(scope="module")
def ours() -> HarnessModel:
    model = load_model("glm-tiny", dtype="fp32", device="cpu")
    processes = Processes(torch.device("cpu"), precision="fp32")
    return HarnessModel(model, load_tokenizer("glm-tiny"), processes)


def by_hand(context: str, continuation: str) -> tuple[float, bool]:
    model, tokenizer = load_model("glm-tiny", dtype="fp32", device="cpu"), load_tokenizer("glm-tiny")
    whole = tokenizer.encode_plain(context + continuation)
    start = len(tokenizer.encode_plain(context.rstrip())) if context.rstrip() else 0
    first = tokenizer.get_prefix_tokens()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([first + whole])).logits[0].double().log_softmax(-1)
    rows, scored = logits[len(first) + start - 1 : -1], torch.tensor(whole[start:])
    taken = rows.gather(-1, scored[:, None])[:, 0]
    return float(taken.sum()), bool((rows.argmax(-1) == scored).all())


def test_likelihoods_are_the_sums_of_log_probabilities(ours: HarnessModel) -> None:
    found = ours.loglikelihood([asked(*pair) for pair in PAIRS])
    for (value, is_greedy), pair in zip(found, PAIRS, strict=True):
        expected, greedy = by_hand(*pair)
        assert value == pytest.approx(expected, rel=1e-4)
        assert is_greedy == greedy
    [whole] = ours.loglikelihood_rolling([asked("白日依山尽，黄河入海流")])
    assert whole == pytest.approx(by_hand("", "白日依山尽，黄河入海流")[0], rel=1e-4)


def test_a_text_goes_on_greedily_and_ends_before_its_stop_text(ours: HarnessModel) -> None:
    kinds: list[dict[str, Any]] = [{"max_gen_toks": 12}, {"max_gen_toks": 12, "until": ["，"]}]
    whole, cut = ours.generate_until([asked("白日依山尽，", kind) for kind in kinds])
    assert whole
    assert cut == whole.split("，")[0]


def write_task(folder: Path, rows: list[dict[str, Any]], kind: str, *lines: str) -> None:
    """A task of one's own, called `mine`; each row's `q` is asked."""
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    content = [
        "task: mine",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.json'}}}}}",
        "test_split: test",
        f"output_type: {kind}",
        'doc_to_text: "{{q}}"',
        'target_delimiter: ""',
        *lines,
    ]
    (folder / "mine.yaml").write_text("\n".join(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "metric"), [("loglikelihood", "perplexity"), ("generate_until", "exact_match")]
)
def test_two_processes_have_the_scores_of_one(tmp_path: Path, kind: str, metric: str) -> None:
    rows = [
        {"q": f"白日{word}", "a": answer} for word, answer in zip("依山尽，黄", "山尽，黄河", strict=True)
    ]
    lines = (
        'doc_to_target: "{{a}}"',
        "generation_kwargs: {max_gen_toks: 1}",
        f"metric_list: [{{metric: {metric}}}]",
    )
    write_task(tmp_path, rows, kind, *lines)
    scores = {}
    for count in (1, 2):
        words = ["evaluate", "glm-tiny", "--tasks", "mine", "--include-path", str(tmp_path), "--json"]
        output = ["--output", str(tmp_path / str(count)), "dtype=fp32"]
        done = run_ranks(count, "-m", "glmtune", *words, *output, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        scores[count] = json.loads(done.stdout)["results"]["mine"][f"{metric},none"]
    assert scores[2] == pytest.approx(scores[1], rel=1e-4)


def test_a_task_of_ones_own_is_scored_and_written_down(ours: HarnessModel, tmp_path: Path) -> None:
    rows = [{"q": context, "choices": [right, "龘龘龘龘"], "gold": 0} for context, right in PAIRS[:2]]
    lines = ('doc_to_choice: "{{choices}}"', "doc_to_target: gold", "metric_list: [{metric: acc}]")
    write_task(tmp_path, rows, "multiple_choice", *lines)
    recipe = build_recipe({"model": "glm-tiny", "dtype": "fp32", "output": str(tmp_path / "out")})
    path, facts = drain(asking_tasks(recipe, ["mine"], include_path=tmp_path))
    pairs = [(context, choice) for context, right in PAIRS[:2] for choice in (right, "龘龘龘龘")]
    values = [value for value, _ in ours.loglikelihood([asked(*pair) for pair in pairs])]
    right = [values[i] > values[i + 1] for i in (0, 2)]
    assert facts["results"]["mine"]["acc,none"] == pytest.approx(sum(right) / 2)
    assert json.loads(path.read_text(encoding="utf-8"))["results"]["mine"]["acc,none"] == sum(right) / 2
    with pytest.raises(ConfigError, match="lm-eval knows no task 'none_such'"):
        drain(asking_tasks(recipe, ["none_such"]))
