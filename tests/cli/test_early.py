"""What is wrong with a path, a setting or a row is told before torch is loaded: nobody waits for it."""

import json
import shutil
import subprocess
import sys

import pytest

SAY_EACH = """
import io, json, sys
sys.modules["bitsandbytes"] = None  # as if it were not installed
from contextlib import redirect_stderr
from glmtune.cli import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    sys.argv = ["glmtune", *words]
    try:
        with redirect_stderr(said):
            main()
    except SystemExit as stop:
        error, hint = said.getvalue().splitlines()
        print(json.dumps([stop.code, error, hint, "torch" in sys.modules]))
"""
ROWS = "model=glm-tiny data.train=good.jsonl"
CASES = {
    "train model=glm-tiny data.train=goof.jsonl": ("goof.jsonl: cannot be read", "did you mean good.jsonl?"),
    "train model=glm-tiny data.train=bad.jsonl": ("bad.jsonl:2: column 2: broken JSON", ""),
    "plan model=glm-tiny data.train=goof.jsonl": ("goof.jsonl: cannot be read", "did you mean good.jsonl?"),
    "plan model=nowhere data.train=good.jsonl": ("nowhere: no such folder", "or a hub's name"),
    "plan runs/test tset": ("error: runs/test: data.train: missing", "data.train=my.json"),
    "plan tset": ("tset: no such run or recipe", "did you mean runs/test?"),
    "train model=glm-tiny": ("data.train: missing", "data.train=my.json"),
    "train model=nowhere data.train=good.jsonl": ("nowhere: no such folder", "or a hub's name"),
    f"train {ROWS} train.lrr=1": ("train.lrr: unknown setting", "did you mean"),
    f"train {ROWS} output=full": ("full: this folder is not empty", "name another with output=..."),
    f"train {ROWS} output=runs/tset --resume": (
        "runs/tset: no run to resume here",
        "did you mean runs/test?",
    ),
    f"train {ROWS} output=runs/other --resume": ("no run to resume here", "runs are: runs/test"),
    f"train {ROWS} output=new --resume": ("new: no run to resume here", "leave resume out to begin it"),
    f"train {ROWS} output=runs/test --resume": ("runs/test: this run has no checkpoint", "delete it"),
    "train --resume": ("--resume: no run named", "runs are: runs/test"),
    "train --resume train.steps=9": (
        "--resume: no run named",
        "`glmtune train RUN --resume`; runs are: runs/test",
    ),
    "train model=/models/chatglm3-6b data.train=good.jsonl": (
        "/models/chatglm3-6b: no such folder",
        "model=FOLDER",
    ),
    f"train {ROWS} quant=nf4": ("this needs bitsandbytes", "glmtune[bitsandbytes]"),
    "train rows.json": ("rows.json: rows, not a recipe", "data.train=rows.json"),
    "train tset": ("tset: no such run or recipe", "did you mean runs/test?"),
    "chat tset": ("tset: no such folder", "did you mean runs/test?"),
    "train runs/tset": ("runs/tset: no such run or recipe", "did you mean runs/test?"),
    "train none.yaml": ("none.yaml: cannot be read", "name a recipe that is there"),
    "train full": ("full: not the folder of a run", "model=full"),
    "evaluate glm-tiny --data none.json": ("none.json: cannot be read", ""),
    "evaluate glm-tiny --data bad.jsonl": ("bad.jsonl:2: column 2: broken JSON", ""),
    "evaluate runs/tset": ("runs/tset: no such folder", "did you mean runs/test?"),
    "evaluate runs/test": ("runs/test: this run has no checkpoint yet", "begin it anew, by its own recipe"),
    "export nowhere --to merged --output out": ("nowhere: no such folder", ""),
    "verify nowhere": ("nowhere: no such folder", ""),
    "info nowhere": ("nowhere: no such folder", ""),
    "chat nowhere": ("nowhere: no such folder", ""),
    "chat runs/tset": ("runs/tset: no such folder", "did you mean runs/test?"),
    "train model=runs/tset data.train=good.jsonl": ("runs/tset: no such folder", "did you mean runs/test?"),
    "compare nowhere other": ("nowhere: no such folder", ""),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, bool]]:
    """Of each command: exit code, error, hint, and whether torch was loaded by then."""
    work = tmp_path_factory.mktemp("work")
    row = json.dumps({"prompt": "a", "response": "b"})
    (work / "good.jsonl").write_text(f"{row}\n" * 3, encoding="utf-8")
    (work / "rows.json").write_text(f"[{row}]", encoding="utf-8")
    (work / "bad.jsonl").write_text(f"{row}\n{{,\n", encoding="utf-8")
    for name in ("full", "runs/test"):
        (work / name).mkdir(parents=True)
        (work / name / "notes.txt").write_text("mine", encoding="utf-8")
    (work / "runs" / "test" / "recipe.yaml").write_text("model: glm-tiny\n", encoding="utf-8")
    words = json.dumps([command.split() for command in CASES])
    before = sorted(work.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", SAY_EACH, words], cwd=work, capture_output=True, text=True, encoding="utf-8",
        check=True,
    )  # fmt: skip
    assert sorted(work.rglob("*")) == before
    shutil.rmtree(work)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", CASES)
def test_it_is_told_with_a_hint_and_without_torch(
    told: dict[str, tuple[int, str, str, bool]], command: str
) -> None:
    code, error, hint, has_torch = told[command]
    message, cure = CASES[command]
    assert code == 2
    assert message in error
    assert hint.startswith("hint: ")
    assert cure in hint
    assert not has_torch
