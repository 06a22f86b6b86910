"""What the documentation says can be typed, works."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune as public
import old_scripts
from commands import Done, glmtune
from explained_logs import LOGS
from glmtune.files import LFS_POINTER
from glmtune.models import ChatGLM6BConfig, ChatGLM6BForConditionalGeneration
from glmtune.templates import TEMPLATES, Message, training_examples
from models import tiny_folder, tiny_hf_folder
from test_architecture import LAYERS
from tiny import tiny_ice, tiny_sentencepiece

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
SMALL = {
    "train": ["data.max_tokens=400", "train.epochs=null", "train.steps=1", "samples.max_new_tokens=4"],
    "evaluate": ["evaluate.max_new_tokens=4"],
    "chat": ["--max-new-tokens", "4", "--rounds", "1"],
    "info": [],
    "data": [],
    "doctor": [],
    "plan": [],
}


GUIDES = (
    "quickstart", "memory", "data", "limits", "forgetting", "models", "methods", "adapters", "compare",
    "report", "export", "migrate", "generations", "glm-tiny", "performance", "troubleshooting",
)  # fmt: skip
LISTS = (
    "cluster",
    "settings",
    "results",
    "defaults",
    "sources",
    "architecture",
    "developing",
    "python",
    "how-glm-works",
    "knowledge-base",
    "runs",
    "serve",
    "web",
)
"""Pages without commands to run here: made by a program, or figures, links and Python; `serve` and `web` have
commands that do not end, see tests/cli/test_serve.py and tests/cli/test_web.py; those of the knowledge base
are typed in unit/serve."""
TUTORIALS = tuple(
    f"from-the-tutorials/{name}"
    for name in (
        "README", "0-ptuning-own-data", "1-chatglm3-lora", "2-ptuning-or-lora", "3-few-shot-adalora",
        "4-three-ways",
    )
)  # fmt: skip
"""Pages for readers of the write-ups, their index first; `test_tutorials.py` runs their commands."""
NOT_RUN = {
    "glmtune demo": "takes a minute, and has tests of its own",
    "hf ": "downloads",
    "HF_ENDPOINT=": "downloads",
    "glmtune train model=THUDM/": "downloads",
    "glmtune chat modelscope:": "downloads",
    "modelscope ": "downloads",
    "pip ": "installs",
    "make ": "installs",
    "ONEDNN_MAX_CPU_ISA=": "measures for minutes",
    "source ": "installs",
    "python -m tools.glm_tiny.build ": "takes half an hour",
    "python -m benchmarks.": "takes long, and has tests of its own",
}
SHOWN = (
    "error: ", "hint: ", "warning: ", "training rows: ", "trainable params: ", "  tokens ", "/models/",
    "  the model's context ", "AdvertiseGen/", "memory: ", "> temperature ", "forecast: ",
)  # fmt: skip
"""How lines begin that a program prints."""
GUIDE_WORDS = {
    "train": [
        "train.epochs=null",
        "train.steps=1",
        "train.batch_size=2",
        "data.max_rows=4",
        "samples.max_new_tokens=4",
    ],
    "evaluate": ["evaluate.max_new_tokens=4"],
    "chat": ["--max-new-tokens", "4", "--rounds", "1"],
    "checkup": ["--prompts", "2"],
    "compare": [],
    "data": [],
    "export": [],
    "info": [],
    "migrate": [],
    "plan": [],
    "verify": [],
    "runs": [],
    "explain": [],
    "report": [],
    "card": [],
}


def both(name: str) -> list[Path]:
    return [ROOT / "docs" / f"{name}.md", ROOT / "docs" / f"{name}.zh.md"]


PAGES = (*GUIDES, *LISTS, *TUTORIALS)
PAIRS = [READMES, *map(both, PAGES)]


def blocks(path: Path, language: str = r"\w*") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if re.fullmatch(language, name)]


def commands() -> list[str]:
    """The glmtune lines of the README, without those that need a second card."""
    lines = [line for block in blocks(READMES[0]) for line in block.splitlines()]
    return [line for line in lines if line.startswith("glmtune ")]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)
def test_both_languages_show_the_same_code(pair: list[Path]) -> None:
    english, chinese = (blocks(path) for path in pair)
    assert english == chinese


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)
def test_both_languages_name_the_same_files_and_settings(pair: list[Path]) -> None:
    english, chinese = (set(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))) for path in pair)
    assert english == chinese


def tables(path: Path) -> list[list[int]]:
    """How many cells each row of each table has."""
    found = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [[len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()] for table in found]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)
def test_both_languages_have_the_same_tables(pair: list[Path]) -> None:
    english, chinese = map(tables, pair)
    assert english == chinese


def figures(path: Path) -> set[str]:
    """The figures in a page's tables."""
    rows = re.findall(r"^\|.*", path.read_text(encoding="utf-8"), re.MULTILINE)
    return set(re.findall(r"\d[\d.,]*\d|\d", " ".join(rows)))


def test_both_languages_give_the_same_results() -> None:
    english, chinese = map(figures, both("results"))
    assert english == chinese


def test_every_guide_is_there_in_both_languages_links_to_the_other_and_is_listed() -> None:
    docs = ROOT / "docs"
    names = {path.relative_to(docs).as_posix().split(".")[0] for path in docs.rglob("*.md")}
    assert names == {*PAGES}
    for name in PAGES:
        english, chinese = both(name)
        assert f"[中文]({chinese.name})" in english.read_text(encoding="utf-8").splitlines()[2]
        assert f"[English]({english.name})" in chinese.read_text(encoding="utf-8").splitlines()[2]
        lists = both(TUTORIALS[0]) if name in TUTORIALS[1:] else READMES
        for listing, guide in zip(lists, (english, chinese), strict=True):
            link = guide.relative_to(listing.parent).as_posix()
            assert f"]({link})" in listing.read_text(encoding="utf-8")


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_links_to_sections_lead_to_a_heading() -> None:
    for path in (page for name in PAGES for page in both(name)):
        for target, anchor in re.findall(
            r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text(encoding="utf-8")
        ):
            assert anchor in headings(path.parent / target if target else path), f"{path}: {target}#{anchor}"


def test_the_links_in_the_documentation_lead_somewhere() -> None:
    for path in [*READMES, *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_map_of_the_code_names_what_is_there() -> None:
    src = ROOT / "src" / "glmtune"
    for page in both("architecture"):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`([a-z_0-9]+/[a-z_0-9/]*(?:\.py)?)`", text):
            assert (src / path).exists() or (ROOT / path).exists(), f"{page.name}: {path}"
        for line in text.splitlines():
            named = [src / path for path in re.findall(r"`([a-z_0-9/]+\.py)`", line)]
            files = [path.read_text(encoding="utf-8") for path in named if path.exists()]
            for table in re.findall(r"`([A-Z]{4,})`", line):
                assert any(re.search(rf"^{table}\b", file, re.MULTILINE) for file in files), table
        layers = re.search(r"^`errors` ·.*?\n\n", text, re.MULTILINE | re.DOTALL)
        assert layers
        assert [set(re.findall(r"\w+", layer)) for layer in layers[0].split("·")] == LAYERS


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    shown = next(block for block in blocks(READMES[0]) if block.startswith("{"))
    for name in ("my.json", "test.json"):
        (tmp_path / name).write_text(shown, encoding="utf-8")
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    ran = 0
    for line in commands():
        if line.endswith("--resume") or "recipes/" in line or line == "glmtune demo":
            continue  # resuming, the recipes and the demo have tests of their own
        verb, *words = shlex.split(line)[1:]
        words = [word.replace("/models/chatglm3-6b", str(tmp_path / "model")) for word in words]
        done = glmtune(verb, *words, *SMALL[verb], cwd=tmp_path, typed="你好\nstop\n")
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize(("page", "words"), [("settings.md", []), ("settings.zh.md", ["--lang", "zh"])])
def test_the_settings_page_is_what_the_program_prints(page: str, words: list[str]) -> None:
    printed = glmtune("settings", "--markdown", *words, cwd=ROOT).stdout
    assert (ROOT / "docs" / page).read_text(encoding="utf-8").endswith(f"\n\n{printed}")


# The guides


def tiny_v1_folder(folder: Path) -> None:
    """A complete folder of ChatGLM-6B: tokenizer, config and random weights."""
    tiny_ice(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": 64, "inner_hidden_size": 128, "num_attention_heads": 4, "num_layers": 2}
    whole = ChatGLM6BConfig.from_dict({**config, **sizes, "max_sequence_length": 512})
    ChatGLM6BForConditionalGeneration(whole).save_pretrained(folder)


def lay_out(folder: Path) -> None:
    """What a reader has: models, a few rows, this repository's examples."""
    for name, template in (
        ("chatglm2-6b", "chatglm2"),
        ("chatglm3-6b", "chatglm3"),
        ("glm-4-9b-chat", "glm4"),
    ):
        tiny_folder(
            folder / "models" / name, template, hidden_size=64, ffn_hidden_size=128, kv_channels=16
        )  # whole blocks for nf4
    tiny_v1_folder(folder / "models" / "chatglm-6b")
    (folder / "train.log").write_text(LOGS["ragged-rows"], encoding="utf-8")
    row = next(json.loads(block.splitlines()[0]) for block in blocks(READMES[0]) if block.startswith("{"))
    for name in ("my.json", "test.json", "general.json"):
        (folder / name).write_text(json.dumps([row] * 4, ensure_ascii=False), encoding="utf-8")
    for name in ("examples", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    lay_out_the_past(folder)


def lay_out_the_past(folder: Path) -> None:
    """Old scripts with their rows, a configuration, an adapter and a checkpoint."""
    old_scripts.write_scripts(folder / "ptuning", "chatglm2-6b")
    (folder / "AdvertiseGen").mkdir()
    for name in ("train", "dev"):
        shutil.copy(ROOT / "examples" / "adverts_heldout.jsonl", folder / "AdvertiseGen" / f"{name}.json")
    configs = folder / "finetune_demo" / "configs"
    configs.mkdir(parents=True)
    (configs / "lora.yaml").write_text(old_scripts.config("lora"), encoding="utf-8")
    old_scripts.write_lora(folder / "old" / "lora", folder / "models" / "chatglm3-6b")
    checkpoint = folder / "output" / "adgen-chatglm2-6b-pt-128-2e-2" / "checkpoint-3000"
    old_scripts.write_prefix(checkpoint, folder / "models" / "chatglm2-6b")


def type_in(line: str, folder: Path) -> Done:
    """Run a guide's line, in few small steps, with the folder's models in place of /models."""
    verb, *words = shlex.split(line.replace("/models/", f"{folder}/models/"))[1:]
    return glmtune(verb, *words, *GUIDE_WORDS[verb], cwd=folder, typed="你好\nstop\n")


CONTINUED = ("export", "troubleshooting")
"""Guides that go on with the run of the quick start."""
CONTINUED_FROM = "glmtune train model=/models/chatglm3-6b data.train=my.json output=runs/mine"


LONG_GUIDES = ("export", "memory", "methods")
"""Their commands take tens of seconds."""


@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG_GUIDES else ())
        for name in GUIDES
        if name != "data"
    ],
)  # tests/cli/test_data.py runs its
def test_a_guides_commands_run(name: str, tmp_path: Path) -> None:
    lay_out(tmp_path)
    terminal = [line for block in blocks(both(name)[0], language="") for line in block.splitlines()]
    if name in CONTINUED:
        terminal = [CONTINUED_FROM, *terminal]
    for line in terminal:
        if line.startswith((*NOT_RUN, *SHOWN)):
            continue
        if line.startswith("cat "):
            subprocess.run(line, shell=True, check=True, cwd=tmp_path)
            continue
        assert line.startswith("glmtune "), line
        done = type_in(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.slow
def test_the_python_of_the_readme_runs_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = blocks(READMES[0], language="python")
    exec(code, {})
    losses, *_ = capsys.readouterr().out.splitlines()
    first, best = map(float, losses.split(" -> "))
    assert best < 0.6 * first


@pytest.mark.slow
def test_the_page_about_python_runs_block_by_block(tmp_path: Path) -> None:
    code = "\n".join(blocks(both("python")[0], language="python"))
    done = subprocess.run(  # in a process of its own, for it configures logging
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    for line in ("train.lrr: unknown setting", "did you mean train.lr=0.0001?", "exports/merged merged"):
        assert line in done.stdout.splitlines()


def test_the_page_about_python_names_and_uses_every_public_name() -> None:
    for page in both("python"):
        text = page.read_text(encoding="utf-8")
        used = "".join(blocks(page, language="python"))
        for name in public.__all__:
            assert re.search(rf"^(- |\| )`{name}`", text, re.MULTILINE) or name == "GlmtuneError", name
            is_error = name.endswith("Error")  # of which one example stands for all
            assert is_error or re.search(rf"\b{name}\b", used) or name == "RunResult", name


def test_the_modules_that_the_documentation_imports_are_there() -> None:
    pages = [*READMES, *(page for name in PAGES if name != "developing" for page in both(name))]
    pages += (ROOT / "examples").glob("*.ipynb")  # and not the page that has its reader write modules
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"from (glmtune[\w.]*) import ([\w, ]+)", text):
            assert all(hasattr(import_module(module), name) for name in names.split(", ")), (
                f"{page}: {module}"
            )


def test_the_python_that_lists_what_is_trained_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks(both("methods")[0], language="python")
    exec(code, {})
    assert "query_key_value.lora_B" in capsys.readouterr().out


def test_the_python_that_migrates_a_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old_scripts.write_scripts(tmp_path / "ptuning", "chatglm-6b")
    monkeypatch.chdir(tmp_path)
    [code] = blocks(both("migrate")[0], language="python")
    exec(code, {})
    assert "glmtune train migrated/mine.yaml" in capsys.readouterr().out


def test_the_python_with_several_adapters_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in blocks(both("adapters")[0], language="")[0].splitlines():
        assert type_in(line, tmp_path).returncode == 0
    names: dict[str, object] = {}
    for code in blocks(both("adapters")[0], language="python"):  # the second goes on from the first
        exec(code, names)
        answers = [line.split(" ", 1)[0] for line in capsys.readouterr().out.splitlines() if line]
        assert {"lora", "prefix", "None"} <= set(answers)


def test_the_python_that_answers_many_prompts_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks(both("models")[0], language="python")
    exec(code, {})
    answers = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in answers if line.startswith("类型#")] == re.findall(
        r'"(类型#[^"]+)"', code
    )


def test_the_python_that_renders_a_chat_runs(capsys: pytest.CaptureFixture[str]) -> None:
    english, chinese = (blocks(guide, language="python") for guide in both("generations"))
    assert english == chinese
    exec(english[0], {})
    said = capsys.readouterr().out
    assert "<think>两地各查一次。</think>\n我查一下。\n<tool_call>get_time" in said
    assert "我查一下。<|assistant|>get_time\n{" in said


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_the_shown_chat_format_is_the_one_trained_on(template: str) -> None:
    turns = ("user", "你好"), ("assistant", "你好！"), ("user", "一加一？"), ("assistant", "二。")
    example = training_examples(template, [Message(role, text) for role, text in turns])[-1]
    assert "".join(segment.text for segment in example) + "\n" in blocks(both("generations")[0])


def test_glm_tiny_answers_as_shown() -> None:
    from glmtune import encode_messages, load_model, load_tokenizer
    from glmtune.generate import Sampling, complete_texts

    text = both("glm-tiny")[0].read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|(?: [^|]+ \|)?$", text.split("## What it answers")[1], re.MULTILINE
    )
    shown = {question: said for question, said in rows if question != "question"}
    assert 20 <= len(shown) <= 30
    model, tokenizer = load_model("glm-tiny", dtype="fp32"), load_tokenizer("glm-tiny")
    prompts = [encode_messages(tokenizer, [{"role": "user", "content": question}]) for question in shown]
    said = complete_texts(model, tokenizer, prompts, Sampling(do_sample=False, max_new_tokens=48))
    same = sum(one == other for one, other in zip(said, shown.values(), strict=True))
    assert same >= 0.9 * len(shown)  # another CPU's rounding may turn one


# Troubleshooting: each quoted message is really given


def keep(_: Path) -> None:
    """Nothing is wrong with the files."""


def model_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda desk: (desk / "models" / "chatglm3-6b" / name).write_bytes(content)


def rows_file(text: str, charset: str = "utf-8") -> Callable[[Path], object]:
    return lambda desk: (desk / "my.json").write_text(text, encoding=charset)


def windows_path(desk: Path) -> None:
    text = 'model: models/chatglm3-6b\ndata:\n  train: "D:\\new\\rows.json"\n'
    (desk / "recipe.yaml").write_text(text, encoding="utf-8")


def forget_name(desk: Path) -> None:
    tiny_sentencepiece(desk / "models" / "chatglm3-6b", None)


def quantise(desk: Path) -> None:
    path = desk / "models" / "chatglm3-6b" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_bit": 4}), encoding="utf-8")


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: change(tensors[name])}, folder / "model.safetensors", {"format": "pt"})


def put_nan(desk: Path) -> None:
    def spoil(weight: torch.Tensor) -> torch.Tensor:
        weight[7, 5] = float("nan")
        return weight

    change_tensor(desk / "models" / "chatglm3-6b", "transformer.output_layer.weight", spoil)


def make_experts(desk: Path) -> Path:
    return tiny_hf_folder(desk / "models" / "glm-4.5", "GLM-4.5")


def put_float8(desk: Path) -> None:
    change_tensor(make_experts(desk), "model.norm.weight", lambda weight: weight.to(torch.float8_e4m3fn))


def pissa(desk: Path) -> None:
    path = desk / "old" / "lora" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "init_lora_weights": "pissa"}), encoding="utf-8")


def make_run(desk: Path) -> None:
    words = "model=models/chatglm3-6b data.train=my.json train.steps=2 train.eval_every=2 samples.prompts=[]"
    done = glmtune("train", *words.split(), "output=runs/mine", cwd=desk)
    assert done.returncode == 0, done.stderr


def move_base(desk: Path) -> None:
    make_run(desk)
    (desk / "models" / "chatglm3-6b").rename(desk / "models" / "elsewhere")


def break_off(desk: Path) -> None:
    (desk / "runs" / "early").mkdir(parents=True)
    text = "model: models/chatglm3-6b\ndata: {train: my.json}\n"
    (desk / "runs" / "early" / "recipe.yaml").write_text(text, encoding="utf-8")


def flip_state(desk: Path) -> None:
    make_run(desk)
    path = desk / "runs" / "mine" / "checkpoints" / "step-000002" / "state.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    (desk / "runs" / "mine" / "eval.json").unlink()  # as if it had been stopped


def mislead_best(desk: Path) -> None:
    words = "model=models/chatglm3-6b data.train=my.json train.steps=2 train.eval_every=1 samples.prompts=[]"
    done = glmtune("train", *words.split(), "output=runs/mine", cwd=desk)
    assert done.returncode == 0, done.stderr
    (desk / "runs" / "mine" / "best").unlink()
    (desk / "runs" / "mine" / "best").symlink_to("checkpoints/step-000001")


TRAIN = "train model=/models/chatglm3-6b data.train=my.json train.steps=1 samples.prompts=[] output=runs/new"
PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "The tokenizer of another model": (model_file("tokenizer.model", b"IQ== 0\nIg== 1\n"), TRAIN),
    "A Git LFS pointer": (model_file("model.safetensors", LFS_POINTER + b".github.com/spec/v1\n"), TRAIN),
    "ChatGLM2 or ChatGLM3?": (forget_name, TRAIN),
    "Quantised or not?": (quantise, TRAIN),
    "A number that is none": (put_nan, TRAIN),
    "A tensor of another type": (put_float8, TRAIN.replace("chatglm3-6b", "glm-4.5")),
    "Target modules that are experts": (
        make_experts, f"{TRAIN.replace('chatglm3-6b', 'glm-4.5')} method.target_modules=[gate_proj]",
    ),
    "An adapter of PEFT's is refused by a setting": (
        pissa, "migrate old/lora --base /models/chatglm3-6b --output new",
    ),
    "PyTorch sees no GPU": (keep, f"{TRAIN} device=cuda"),
    "The base model has moved": (move_base, "chat runs/mine"),
    "A broken file": (
        rows_file('[\n{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n]'), TRAIN,
    ),
    "Another character set": (rows_file('[{"prompt": "早", "response": "早上好"}]', "gb18030"), TRAIN),
    "Unknown columns": (rows_file('[{"question": "a", "reply": "b"}]'), TRAIN),
    "Columns that nobody reads": (
        rows_file('[{"question": "a", "context": "b", "answer": "c"}]'), TRAIN,
    ),
    "A key given twice": (
        rows_file('[{"prompt": "a", "response": "b",\n  "prompt": "c", "response": "d"}]'), TRAIN,
    ),
    "A thought that never closes": (
        rows_file('[{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "<think>一周从周一到"}]'),
        TRAIN,
    ),
    "An empty answer": (
        rows_file('[{"prompt": "a", "response": "b"}, {"prompt": "c", "response": ""}]'), TRAIN,
    ),
    "Most rows are too long": (
        keep, "train model=glm-tiny data.train=examples/adverts.jsonl data.max_tokens=48 output=runs/new",
    ),
    "The validation file is the training file": (keep, f"{TRAIN} data.validation=my.json"),
    "Target modules not found": (keep, f"{TRAIN} method.target_modules=[q_proj]"),
    "A path with backslashes": (windows_path, "train recipe.yaml"),
    "A misspelled setting": (keep, f"{TRAIN} train.lrr=1"),
    "A setting of another program": (keep, f"{TRAIN} train.learning_rate=2e-4"),
    "The loss is nan": (keep, f"{TRAIN} train.lr=1e30 train.max_grad_norm=0"),
    "Chat at risk before the start": (keep, f"{TRAIN} train.steps=12 train.lr=1e-2"),
    "fp16 on a CPU": (keep, f"{TRAIN} train.precision=fp16 device=cpu"),
    "Not overwritten": (make_run, f"{TRAIN} output=runs/mine"),
    "Interrupted before the first checkpoint": (break_off, "train runs/early --resume"),
    "A file of a checkpoint has changed": (flip_state, "train runs/mine --resume"),
    "The best checkpoint is not the one that is linked": (mislead_best, "chat runs/mine --rounds 1"),
    "Resumed with other settings": (make_run, "train runs/mine --resume train.steps=50"),
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk").resolve()
    lay_out(folder)
    return folder


def quoted() -> dict[str, str]:
    """The messages in the guide, by the heading of their section."""
    text = both("troubleshooting")[0].read_text(encoding="utf-8")
    return dict(
        re.findall(r"^### ([^\n]+)\n\n```\n((?:error|warning): .*?)```", text, re.MULTILINE | re.DOTALL)
    )


def test_every_message_in_the_guide_is_tried() -> None:
    assert quoted().keys() == PROBLEMS.keys()


@pytest.mark.parametrize("heading", PROBLEMS)
def test_a_message_in_the_guide_is_the_programs_own(desk: Path, heading: str, tmp_path: Path) -> None:
    if heading == "PyTorch sees no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    place = tmp_path.resolve() / "desk"
    shutil.copytree(desk, place, symlinks=True)
    prepare, line = PROBLEMS[heading]
    prepare(place)
    done = glmtune(*shlex.split(line.replace("/models/", f"{place}/models/")), cwd=place)
    said = (done.stdout + done.stderr).replace(f"{place}/models/", "/models/").replace(str(place), "...")
    assert done.returncode == (0 if quoted()[heading].startswith("warning") else 2), said
    assert set(quoted()[heading].splitlines()) <= set(said.splitlines()), said
