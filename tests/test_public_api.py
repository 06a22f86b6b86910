"""The public names and their signatures: changing one is a decision, not an accident."""

import inspect
import json
import re
import sys
import textwrap
import traceback
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import glmtune
from forks import run_fork
from glmtune.generate.adapter_set import AdapterSet
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.renamed import RENAMED
from glmtune.workflows.events import Answered, Event, FirstRow, Note
from models import tiny_folder
from proofs import edit_card
from tuned import tune

SIGNATURES = {
    "load_model": (
        "(path, adapter=None, quant=None, template=None, dtype='auto', device='auto', *, revision=None,"
        " verify=True, strength=1.0)"
    ),
    "load_tokenizer": "(path, template=None, *, revision=None)",
    "encode_messages": (
        "(tokenizer, messages, *, tools=None, add_generation_prompt=True, taught=None, **options)"
    ),
    "render_messages": "(template, messages, *, tools=None, add_generation_prompt=True, **options)",
    "answer_text": "(tokenizer, ids)",
    "score": "(predictions, references, variant='thudm')",
    "plan": "(recipe=None, *, probe=False, quiet=False, on_event=None, **settings)",
    "train": "(recipe=None, *, resume=False, force=False, quiet=False, on_event=None, **settings)",
    "evaluate": (
        "(recipe, *, data=None, output=None, against=None, general=False, quiet=False, on_event=None)"
    ),
    "export": (
        "(path, *, to, output=None, base=None, template=None, dtype=None, max_shard_size='2GB', data=None, "
        "max_rows=200, score_rows=0, device='auto', strength=1.0, quiet=False, on_event=None)"
    ),
    "checkup": (
        "(path, *, base=None, template=None, prompts=None, dtype='auto', quant=None, device='auto', "
        "quiet=False, on_event=None)"
    ),
    "explain": "(text, lang=None)",
    "compare": "(runs, *, output=None, at=(), quiet=False, on_event=None)",
    "report": "(runs, *, output=None, lang=None, force=False)",
    "card": "(run, *, output=None, lang=None, force=False)",
    "doctor": (
        "(path=None, *, template=None, dtype='auto', quant=None, device='auto', quiet=False, on_event=None)"
    ),
    "migrate": "(source, output=None, *, base=None, template=None, quiet=False, on_event=None)",
    "verify": (
        "(path, *, base=None, template=None, dtype='auto', quant=None, device='auto', quiet=False, "
        "on_event=None)"
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_functions_have_their_signatures(name: str) -> None:
    found = inspect.signature(getattr(glmtune, name))
    bare = found.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == SIGNATURES[name]


def test_an_engine_takes_a_model_or_adapters_also_for_a_type_checker(tmp_path: Path) -> None:
    assert get_args(get_type_hints(glmtune.Engine.__init__)["model"]) == (CausalLM, AdapterSet)
    adapters = glmtune.Adapters(tiny_folder(tmp_path))
    assert isinstance(adapters, AdapterSet)
    assert not isinstance(adapters.model, AdapterSet)
    for name in ("check_mixable", "prefix_of", "mixing"):
        taken = inspect.signature(getattr(AdapterSet, name)).parameters
        assert taken == inspect.signature(getattr(glmtune.Adapters, name)).parameters


def test_every_public_name_is_there() -> None:
    assert sorted(glmtune.__all__) == sorted(
        [
            "Adapters",
            "AnswerError",
            "Chat",
            "Check",
            "CheckpointError",
            "Checkup",
            "Comparison",
            "ConfigError",
            "DataError",
            "Engine",
            "Explained",
            "ExportResult",
            "Finding",
            "GlmtuneError",
            "Migration",
            "MissingDependencyError",
            "Outlook",
            "OutputError",
            "Recipe",
            "Request",
            "RunResult",
            "Sampling",
            "TrainingError",
            *SIGNATURES,
        ]
    )
    assert all(getattr(glmtune, name) for name in glmtune.__all__)
    assert dir(glmtune) == sorted([*glmtune.__all__, "__version__"])
    assert glmtune.__version__ == version("glmtune")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = glmtune.nothing


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_public_name_works_and_warns(old: str) -> None:
    home, _, name = old.rpartition(".")
    new_home, _, new_name = RENAMED[old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(f'{old} is now {RENAMED[old]}')};") as caught:
        found = getattr(import_module(home), name)
    assert found is getattr(import_module(new_home), new_name)
    assert caught[0].filename == __file__
    assert new_name in import_module(new_home).__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module(home).nothing


def test_the_place_of_the_first_row_is_still_there() -> None:
    with pytest.warns(DeprecationWarning, match=r"FirstRow\.where"):
        assert FirstRow("甲乙", "乙", "a.json:1").place == "a.json:1"


def test_help_finds_the_errors_in_a_fresh_process() -> None:
    code = "import glmtune; help(glmtune.errors)"
    done = run_fork([sys.executable, "-c", code], encoding="utf-8", check=True)
    assert "class CheckpointError(GlmtuneError)" in done.stdout


def test_the_example_of_the_engine_runs() -> None:
    example = re.search(r"\n\n((?: {4}.*\n)+)\n", inspect.getdoc(glmtune.Engine) or "")
    assert example
    names: dict[str, Any] = {"glmtune": glmtune}
    exec(textwrap.dedent(example[1]), names)
    assert 0 < len(names["ids"]) <= 8


@pytest.fixture(scope="module", params=["chatglm2", "chatglm3", "glm4", "glm4_base"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp(request.param), request.param)


def test_a_chat_keeps_its_history_until_it_is_cleared(folder: Path) -> None:
    model, tokenizer = glmtune.load_model(folder), glmtune.load_tokenizer(folder)
    with pytest.raises(glmtune.GlmtuneError, match="temprature: unknown setting") as caught:
        glmtune.Chat(model, tokenizer, temprature=0)
    assert caught.value.hint == "did you mean temperature=...?"
    chat = glmtune.Chat(model, tokenizer, temperature=0, max_new_tokens=6)
    first = "".join(chat.ask("你好"))
    assert [m["content"] for m in chat.messages] == ["你好", first.strip()]
    second = "".join(chat.ask("再见"))
    prompt = glmtune.encode_messages(tokenizer, chat.messages[:3])
    ids = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.stop_ids
    )
    answer = [i for i in ids[0, len(prompt) :].tolist() if i not in tokenizer.stop_ids]
    assert second == tokenizer.decode(answer).lstrip()
    chat.clear()
    assert chat.messages == []
    assert repr(chat).startswith(f"<Chat: {tokenizer.template}, 0 rounds, Sampling(max_new_tokens=6")
    assert "".join(chat.ask("你好")) == first


def test_streamed_text_is_the_decoded_answer_and_never_splits_a_character(folder: Path) -> None:
    model, tokenizer = glmtune.load_model(folder), glmtune.load_tokenizer(folder)
    chat = glmtune.Chat(model, tokenizer, temperature=1.5, top_p=1.0, max_new_tokens=40, seed=3)
    pieces = list(chat.ask("你好"))
    assert all(pieces)
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


def small_recipe(folder: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "prompt,response\n" + "".join(f"问题{i},答案{i}。\n" for i in range(12)), encoding="utf-8"
    )
    return {
        "model": str(folder),
        "output": tmp_path / "run",
        "data": {"train": rows},
        "train": {"steps": 2, "batch_size": 4},
        "samples": {"prompts": []},
    }


def test_a_dict_trains_and_evaluates(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(folder, tmp_path)
    result = glmtune.train({"data.train": recipe.pop("data")["train"]}, **recipe, quiet=True)
    assert result.path == tmp_path / "run"
    assert result.metrics["steps"] == 2
    scores = glmtune.evaluate(
        {
            "model": str(result.path),
            "evaluate": {"max_rows": 3, "max_new_tokens": 4},
            "output": tmp_path / "scores",
        },
        data=tmp_path / "rows.csv",
        quiet=True,
    ).scores
    assert scores["num_rows"] == 3
    assert set(scores["thudm"]) == {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "num_empty"}


def test_each_function_says_what_the_command_line_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tiny_folder(tmp_path / "model"), tmp_path)
    run = recipe["output"]
    asked = {
        "model": str(run),
        "data": {"test": recipe["data"]["train"]},
        "evaluate": {"max_rows": 2, "max_new_tokens": 2},
    }
    capsys.readouterr()
    glmtune.train(recipe)
    printed = capsys.readouterr()
    assert printed.out == ""
    for line in ("plan: 2 steps", "what is learned of it:", "global step 1 (", "global step 2 ( 100.00% )"):
        assert printed.err.count(line) == 1, line
    glmtune.evaluate({**asked, "output": tmp_path / "first"})
    checks = glmtune.verify(run)
    said = capsys.readouterr().err
    assert "test rows: 2 rows" in said
    assert all(check.found in said for check in checks)

    heard: list[Event] = []
    glmtune.train(run, resume=True, on_event=heard.append)
    glmtune.evaluate({**asked, "output": tmp_path / "second"}, on_event=heard.append)
    glmtune.verify(run, on_event=heard.append)
    assert glmtune.verify(run, quiet=True) == checks

    def stop(event: Event) -> None:
        if isinstance(event, Answered):
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"1 of 2 answers are kept in .*: run the same again to go on"
    ):
        glmtune.evaluate({**asked, "output": tmp_path / "third"}, on_event=stop)
    glmtune.evaluate({**asked, "output": tmp_path / "third"}, on_event=heard.append)
    assert capsys.readouterr() == ("", "")
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert sum("resumed from step-000002" in text for text in notes) == 1
    assert sum(" on cpu" in text and text.startswith(recipe["model"]) for text in notes) == 4  # each opening
    assert [event.done for event in heard if isinstance(event, Answered)] == [1, 2, 2]


def test_the_rows_of_a_training_are_named_by_their_path_and_a_model_by_its_own(folder: Path) -> None:
    with pytest.raises(glmtune.GlmtuneError, match=r"nosuch\.json: cannot be read"):
        glmtune.train(model=folder, data="nosuch.json", quiet=True)


def test_two_texts_are_scored_as_one_pair() -> None:
    one, other = "一抹海水蓝", "一抹天空蓝"
    assert glmtune.score(one, other) == glmtune.score([one], [other])
    with pytest.raises(glmtune.GlmtuneError, match="references: a text beside a list"):
        glmtune.score([one], other)


def test_python_shows_the_hint_of_an_error_too() -> None:
    shown = "".join(traceback.format_exception(glmtune.GlmtuneError("a: wrong", hint="write b")))
    assert shown.splitlines() == ["glmtune.errors.GlmtuneError: a: wrong", "hint: write b"]


def test_what_migrating_finds_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "python3 main.py --do_train --train_file a.json --max_steps 3 --fp16\n", encoding="utf-8"
    )
    done = glmtune.migrate(script, tmp_path / "one.yaml", base="glm-tiny")
    told = capsys.readouterr().err
    assert all(text in told for text in (*done[0].found, str(done[0].made), *done[0].next))
    heard: list[Event] = []
    glmtune.migrate(script, tmp_path / "two.yaml", base="glm-tiny", on_event=heard.append)
    glmtune.migrate(script, tmp_path / "third.yaml", base="glm-tiny", quiet=True)
    assert capsys.readouterr() == ("", "")
    notes = [
        f"warning: {event.text}" if event.is_warning else event.text
        for event in heard
        if isinstance(event, Note)
    ]
    assert notes == told.replace("one.yaml", "two.yaml").splitlines()


def test_no_library_warns_its_developers_through_ours(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,response\n" + "问题,答案。\n" * 12, encoding="utf-8")
    recipe = {"model": str(folder), "output": tmp_path / "run", "data": {"train": rows}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        glmtune.train(recipe | {"train": {"steps": 1, "lr": 0.01}, "samples": {"prompts": []}})
        glmtune.load_model(tmp_path / "run")
        glmtune.Adapters(folder).add("run", tmp_path / "run")


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_a_run_on_a_quantised_base_is_trained_resumed_and_evaluated_on_it(tmp_path: Path, quant: str) -> None:
    folder = tiny_folder(tmp_path / "base", hidden_size=64, ffn_hidden_size=128, kv_channels=16)
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,response\n" + "问题,答案。\n" * 12, encoding="utf-8")
    recipe = {
        "model": str(folder),
        "quant": quant,
        "output": tmp_path / "run",
        "data": {"train": rows},
        "train": {"steps": 4, "batch_size": 4, "lr": 0.01},
        "samples": {"prompts": []},
    }
    metrics = glmtune.train(recipe).metrics
    assert metrics["eval_loss"] < metrics["first_eval_loss"]
    assert json.loads((tmp_path / "run" / "last" / "glmtune.json").read_text())["quant"] == quant
    assert held_quant(glmtune.load_model(tmp_path / "run")) == quant
    assert glmtune.train(recipe, resume=True).metrics["steps"] == 4
    asked = {"evaluate": {"max_rows": 2, "max_new_tokens": 2}, "output": tmp_path / "scores"}
    glmtune.evaluate({"model": str(tmp_path / "run"), **asked})
    facts = (tmp_path / "scores").glob("*.json")
    assert any(f'"quant": "{quant}"' in path.read_text(encoding="utf-8") for path in facts)


def test_a_quantisation_that_is_not_there_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(glmtune.GlmtuneError, match="quant: unknown 'foo'"):
        glmtune.load_model(folder, quant="foo")


def test_a_whole_model_is_no_adapter(folder: Path) -> None:
    with pytest.raises(glmtune.GlmtuneError, match="not an adapter"):
        glmtune.load_model(folder, adapter=folder)


def test_a_chat_opens_a_run_with_the_system_message_it_was_tuned_with(tmp_path: Path) -> None:
    tune(tiny_folder(tmp_path / "model"), tmp_path / "lora", "lora")
    edit_card(tmp_path / "lora", lambda card: card.update(system="甲"))
    assert glmtune.Chat.open(tmp_path / "lora").messages == [{"role": "system", "content": "甲"}]
    chat = glmtune.Chat.open(tmp_path / "lora", system=None, temperature=0)
    assert (chat.messages, chat.sampling.temperature) == ([], 0)


def test_the_old_name_of_an_argument_works_and_warns() -> None:
    from glmtune.templates import TEMPLATES, messages_from_dicts, visible_text

    with pytest.warns(DeprecationWarning, match=r"^messages_from_dicts: place= is now where=;"):
        messages = messages_from_dicts([{"role": "user", "content": "早"}], place="my.json:1")
    assert messages == messages_from_dicts([{"role": "user", "content": "早"}], where="my.json:1")
    answer = "<think>怎么</think>\n早"
    assert visible_text("glm45", answer) == visible_text(TEMPLATES["glm45"], answer) == "早"
