"""Use each addition of docs/developing.md; run by its path in a copy of the project that has them."""

import json
import sys
from pathlib import Path

import torch

import models
import published
from glmtune import GlmtuneError, encode_messages, evaluate, load_model, load_tokenizer, score, train, verify
from glmtune.data.convert import convert_file
from glmtune.data.reader import read_dataset
from glmtune.families import identify
from glmtune.recipe import Data, load_recipe
from glmtune.workflows.early import training_recipe
from glmtune.workflows.events import Saved
from glmtune.workflows.execute import training
from test_additions import SHORT

PUBLISHED = """{% for m in messages %}<|{{ m.role }}|> {{ m.content }}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def use_formats(work: Path) -> None:
    (work / "ask_tell.jsonl").write_text('{"ask": "1+1?", "tell": "2"}\n')
    (work / "lines.jsonl").write_text('{"lines": ["1+1?", "2"]}\n')
    found = [read_dataset(work / f"{name}.jsonl", Data()) for name in ("ask_tell", "lines")]
    assert [dataset.format for dataset in found] == ["ask_tell", "lines"]
    assert found[0].examples[0].messages == found[1].examples[0].messages
    for name in ("ask_tell", "lines"):
        convert_file([work / "lines.jsonl"], work / f"to_{name}.jsonl", name, Data())
        assert read_dataset(work / f"to_{name}.jsonl", Data()).format == name


def use_method(work: Path) -> None:
    base = models.tiny_folder(work / "base", lively=8)
    run = train(model=str(base), method="norms", output=work / "norms", quiet=True, **SHORT).path
    assert verify(run, quiet=True)
    before, after = (load_model(path, dtype="fp32").state_dict() for path in (base, run))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("norm" in name for name in changed)


def use_objective(work: Path) -> None:
    losses = []
    for share in (0, 0.3):
        objective, output = {"name": "smooth", "share": share}, work / f"smooth-{share}"
        run = train(model=str(work / "base"), objective=objective, output=output, quiet=True, **SHORT).path
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert all(abs(plain - smooth) > 1e-4 for plain, smooth in zip(*losses, strict=True))


def use_metric() -> None:
    assert score("一样", " 一样")["exact"] == 100
    assert score(["一样", "两样"], ["一样", "三样"])["exact"] == 50


def use_family(work: Path) -> None:
    published.PUBLISHED["basic"] = PUBLISHED
    models.HF_FAMILIES["Llama"] = ("llama", "basic")
    folder = models.tiny_hf_folder(work / "llama", "Llama")
    known = identify(folder)
    assert (known.family, known.template) == ("Llama", "basic")
    talk = [
        {"role": "user", "content": "你好 1"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "?"},
    ]
    theirs = models.load_tokenizer_of(folder).apply_chat_template(
        talk, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encode_messages(load_tokenizer(folder), talk) == theirs
    run = work / "run"
    settings = {
        "model": str(folder),
        "template": "basic",
        "data": SHORT["data"],
        "train": {"steps": 2, "batch_size": 2, "save_every": 1},
    }
    begun = training(training_recipe({**settings, "output": str(run)}))
    while not isinstance(next(begun), Saved):
        pass
    begun.close()
    assert load_recipe(run / "recipe.yaml").template == "basic"
    assert train(run, resume=True, quiet=True).metrics["steps"] == 2
    assert verify(run, quiet=True)
    asked = {"model": str(run), "data.max_test_rows": 2, "evaluate.max_new_tokens": 4}
    scored = evaluate(asked, quiet=True).scores
    assert scored["num_rows"] == 2
    assert "exact" in scored["thudm"]
    try:
        train(settings, method="ptuning", output=work / "prefix", quiet=True)
    except GlmtuneError as err:
        assert "not possible with a Llama model" in str(err)
    else:
        raise AssertionError("a prefix needs a class of ours")


def main(work: Path) -> None:
    work.mkdir()
    use_formats(work)
    use_method(work)
    use_objective(work)
    use_metric()
    use_family(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
