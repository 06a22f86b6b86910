"""What was trained is what is loaded: every wrong pairing is refused, each with one sentence."""

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune import Adapters, load_model, load_tokenizer, verify
from glmtune.adapters.card import Card, read_card
from glmtune.adapters.digest import hash_weights
from glmtune.adapters.factors import START
from glmtune.adapters.logit_tolerance import OTHER_TYPE, REQUANTISED, SAME
from glmtune.adapters.own_weights import trained_weights
from glmtune.adapters.probe import last_logits
from glmtune.adapters.store import restore_trained, save_trained
from glmtune.adapters.to_lora import save_as_lora
from glmtune.errors import CheckpointError
from glmtune.load import check_outline
from glmtune.locations import resolve
from glmtune.methods import apply_method
from glmtune.processor import has_bf16
from glmtune.recipe import Full
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder
from proofs import make_checkpoint

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4, "dropout": 0},
    "dora": {"name": "lora", "r": 4, "dropout": 0, "use_dora": True},
    "adalora": {"name": "adalora", "init_r": 6, "target_r": 4, "dropout": 0},
    "ptuning": {"name": "ptuning", "num_prefix_tokens": 4, "dropout": 0},
    "projection": {"name": "ptuning", "num_prefix_tokens": 4, "projection": True, "dropout": 0},
    "freeze": {"name": "freeze", "num_layers": 1},
}
OTHER_SIZE: dict[str, dict[str, Any]] = {
    "lora": {"r": 8},
    "dora": {"r": 8},
    "adalora": {"init_r": 8, "target_r": 4},
    "ptuning": {"num_prefix_tokens": 5},
    "projection": {"num_prefix_tokens": 5},
    "freeze": {"num_layers": 2},
}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ChatGLM-6B": tiny_v1_folder,
    "ChatGLM3": tiny_folder,
    "GLM-4": lambda folder: tiny_folder(folder, "glm4"),
    "GLM-4-hf": lambda folder: tiny_hf_folder(folder, "GLM-4-hf"),
}
PAIRS = [
    (family, method)
    for family in FAMILIES
    for method in METHODS
    if family != "GLM-4-hf" or METHODS[method]["name"] != "ptuning"
]


@dataclass
class Desk:
    """A base of each family, and a checkpoint of each method on it."""

    folder: Path

    def base(self, family: str) -> Path:
        return self.folder / family / "base"

    def checkpoint(self, family: str, method: str) -> Path:
        path = self.folder / family / method
        return path if path.exists() else make_checkpoint(self.base(family), path, METHODS[method])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    for family, make in FAMILIES.items():
        make(folder / family / "base")
    return Desk(folder)


@pytest.fixture
def copy(desk: Desk, tmp_path: Path) -> Callable[[str, str], Path]:
    """A checkpoint that may be damaged."""
    return lambda family, method: Path(shutil.copytree(desk.checkpoint(family, method), tmp_path / "copy"))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], str]]:
    """Gives the one line that was told with some words in it."""
    logger = logging.getLogger("glmtune")
    logger.addHandler(caplog.handler)

    def find(words: str) -> str:
        (line,) = {record.getMessage() for record in caplog.records if words in record.getMessage()}
        return line

    yield find
    logger.removeHandler(caplog.handler)


def refusal(path: Path, **settings: Any) -> str:
    """The sentence with which a checkpoint is refused, by `load_model`; there is a hint too."""
    with pytest.raises(CheckpointError) as caught:
        load_model(path, dtype="fp32", **settings)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# What is as it was


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_checkpoint_that_is_as_it_was_opens_and_says_so_in_one_line(
    family: str, method: str, desk: Desk, told: Callable[[str], str]
) -> None:
    load_model(desk.checkpoint(family, method), dtype="fp32")
    said = told("adapter loaded")
    assert "as recorded: off by " in said
    assert "different from the base's by " in said


def test_the_card_says_what_it_belongs_to(desk: Desk) -> None:
    card = read_card(desk.checkpoint("ChatGLM-6B", "lora"))
    assert card is not None and card.probe is not None
    assert (card.family, card.family_revision, card.template) == ("ChatGLM-6B", "late", "chatglm")
    assert card.stop_ids == load_tokenizer(desk.base("ChatGLM-6B")).stop_ids
    assert card.dtype == "float32"
    assert set(card.versions) == {"torch", "transformers", "peft"}
    assert len(card.probe.tokens) == len(card.probe.base) == len(card.probe.tuned) <= 16


def test_a_base_that_has_moved_or_is_stored_in_another_layout_is_the_same(desk: Desk, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(desk.base("ChatGLM3"), tmp_path / "moved"))
    torch.save(load_file(moved / "model.safetensors"), moved / "pytorch_model.bin")
    (moved / "model.safetensors").unlink()
    checkpoint = desk.checkpoint("ChatGLM3", "lora")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_model(moved, adapter=checkpoint)(ids).logits, load_model(checkpoint)(ids).logits)


@pytest.mark.parametrize(("dtype", "quant"), [("bf16", None), ("fp32", "int8"), ("fp32", "int4")])
def test_opened_in_another_precision_than_saved_more_is_allowed_by_rule(
    dtype: str, quant: str | None, desk: Desk, told: Callable[[str], str]
) -> None:
    checkpoint = make_once(Path(desk.folder / "tiny"), {"name": "lora"})
    card = read_card(checkpoint)
    load_model(checkpoint, dtype=dtype, quant=quant)
    assert card is not None and card.probe is not None
    largest = max(map(abs, (*card.probe.base, *card.probe.tuned)))
    computing = torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32
    share = (OTHER_TYPE[computing] if dtype == "bf16" else SAME[torch.float32]) + REQUANTISED[quant]
    said = told("adapter loaded")
    assert f"allowed {share * largest:.2g}" in said


def make_once(folder: Path, method: dict[str, Any]) -> Path:
    """Of the bundled model, whose answers are no noise."""
    base = Path(load_tokenizer("glm-tiny").vocab_file).parent
    return folder if folder.exists() else make_checkpoint(base, folder, method, by=0.01)


def test_the_outline_of_a_pruned_adalora_opens(copy: Callable[[str, str], Path]) -> None:
    run = copy("ChatGLM3", "adalora")
    tuned = load_model(run, dtype="fp32")
    kept = {n: [True] * 4 + [False] * 2 for n, _ in tuned.named_parameters() if ".lora_E." in n}
    named = {n.removeprefix(START).removesuffix(".default"): mask for n, mask in kept.items()}
    tuned.peft_config["default"].rank_pattern = named
    save_trained(tuned, run, read_card(run) or Card(base="", template="", method={}))
    assert {len(t) for n, t in load_file(weights_of(run)).items() if "lora_E" in n} == {4}
    check_outline(resolve(run))


@pytest.mark.parametrize(
    ("family", "method"), [*PAIRS, *((family, "full") for family in FAMILIES), ("GLM-4.5", "full")]
)
def test_the_outline_of_a_checkpoint_tells_whether_it_opens(
    family: str, method: str, desk: Desk, tmp_path: Path
) -> None:
    base = desk.base(family) if family in FAMILIES else tiny_hf_folder(tmp_path / "base", family)
    settings = METHODS.get(method, {"name": method})
    run = make_checkpoint(base, tmp_path / "run", settings, by=0.01)
    check_outline(resolve(run))
    first = sorted(load_file(weights_of(run)))[0]
    change(run, lambda tensors: {n: t[:-1].contiguous() if n == first else t for n, t in tensors.items()})
    with pytest.raises(CheckpointError):
        check_outline(resolve(run))


def test_a_whole_model_that_was_trained_opens_and_one_that_learned_nothing_does_not(
    desk: Desk, tmp_path: Path
) -> None:
    base = desk.base("ChatGLM3")
    load_model(make_checkpoint(base, tmp_path / "full", {"name": "full"}, by=0.01))
    said = refusal(make_checkpoint(base, tmp_path / "nothing", {"name": "full"}, by=0))
    assert said.endswith("nothing was learned: its weights are its base's")


@pytest.mark.parametrize("family", ["ChatGLM-6B", "ChatGLM3", "GLM-4.5"])
def test_a_whole_model_with_any_bit_turned_is_refused(family: str, desk: Desk, tmp_path: Path) -> None:
    base = desk.base(family) if family in FAMILIES else tiny_hf_folder(tmp_path / "base", family)
    run = make_checkpoint(base, tmp_path / "full", {"name": "full"}, by=0.01)
    assert "weights" in [check.name for check in verify(run)]
    path = weights_of(run)
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(7)
    bits = [draw.randrange(8 * data, 8 * len(content)) for _ in range(25)]
    bits += [draw.randrange(8 * 100, 8 * data) for _ in range(10)]  # names, types, shapes, places
    for bit in bits:
        path.write_bytes(turned(content, bit))
        said = refusal(run)
        assert bit < 8 * data or "not the weights that were saved: their hash is" in said or "finite" in said
    path.write_bytes(turned(content, 8 * len(content) - 32))
    load_model(run, verify=False)


def turned(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_whole_model_of_an_earlier_version_opens_and_its_weights_are_said_not_to_be_proven(
    desk: Desk, tmp_path: Path, told: Callable[[str], str]
) -> None:
    run = make_checkpoint(desk.base("ChatGLM3"), tmp_path / "full", {"name": "full"}, by=0.01)
    tuned = apply_method(load_model(run, dtype="fp32"), Full())
    edit(run / "glmtune.json", tensors_sha256="", weights_sha256=hash_weights(trained_weights(tuned)))
    load_model(run)
    assert told("; not proven").endswith("nothing of it was recorded: its weights")
    restore_trained(tuned, run)
    edit(run / "glmtune.json", weights_sha256="0" * 64)
    with pytest.raises(CheckpointError, match="not the weights that were saved"):
        restore_trained(apply_method(load_model(run, dtype="fp32"), Full()), run)


def test_without_verify_a_wrong_base_is_opened_and_that_is_said(
    desk: Desk, tmp_path: Path, told: Callable[[str], str]
) -> None:
    other = tiny_folder(tmp_path / "other", seed=5)
    load_model(other, adapter=desk.checkpoint("ChatGLM3", "lora"), verify=False)
    assert told("not verified (verify=False)")


@pytest.mark.parametrize("pruned", ["nothing", "unevenly", "a layer"])
def test_plain_lora_made_of_an_adalora_checkpoint_is_proven_too(
    pruned: str, desk: Desk, copy: Callable[[str, str], Path], tmp_path: Path
) -> None:
    run = copy("ChatGLM3", "adalora")
    tuned = load_model(run, dtype="fp32")
    card = read_card(run)
    assert card is not None
    for name, e in ((n, p) for n, p in tuned.named_parameters() if "lora_E" in n and pruned != "nothing"):
        e.data[0 if pruned == "a layer" and "layers.0" in name else 4 :] *= 0 if "layers.0" in name else 1
    probe = card.probe
    assert probe is not None
    answer = last_logits(tuned, probe.input_ids)[probe.tokens].tolist()
    save_as_lora(tuned, tmp_path / "lora", replace(card, probe=replace(probe, tuned=answer)))
    load_model(tmp_path / "lora", dtype="fp32")
    change(tmp_path / "lora", lambda tensors: {n: -t for n, t in tensors.items()})
    assert "these are not the weights that were saved" in refusal(tmp_path / "lora")


# A wrong base


@pytest.mark.parametrize(
    ("family", "method", "other"),
    [(family, method, other) for family, method in PAIRS for other in FAMILIES if other != family],
)
def test_a_base_of_another_family_is_refused(family: str, method: str, other: str, desk: Desk) -> None:
    checkpoint = desk.checkpoint(family, method)
    with pytest.raises(CheckpointError, match=r": trained on .*, but .* is ") as caught:
        load_model(desk.base(other), adapter=checkpoint, dtype="fp32")
    assert "base=" in caught.value.hint


@pytest.mark.parametrize("method", METHODS)
def test_a_base_of_another_revision_is_refused(method: str, tmp_path: Path) -> None:
    early = tiny_v1_folder(tmp_path / "early", "early")
    late = tiny_v1_folder(tmp_path / "late", "late")
    checkpoint = make_checkpoint(early, tmp_path / method, METHODS[method])
    with pytest.raises(CheckpointError, match=r"trained on ChatGLM-6B early, but .* is ChatGLM-6B late"):
        load_model(late, adapter=checkpoint)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_base_with_other_weights_of_the_same_shapes_is_refused(
    family: str, method: str, desk: Desk, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk.base(family), tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1" in name and tensors[name].ndim == 2)
    save_file(tensors | {name: tensors[name] * 1.01}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"trained on other weights than those in .*: fingerprint"):
        load_model(other, adapter=desk.checkpoint(family, method))


@pytest.mark.parametrize("method", METHODS)
def test_a_base_that_computes_otherwise_is_refused_by_the_key(
    method: str, desk: Desk, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk.base("ChatGLM3"), tmp_path / "other"))
    edit(other / "config.json", rope_ratio=50)
    with pytest.raises(CheckpointError, match=r"trained on a base whose rope_ratio is 1, but .* has 50"):
        load_model(other, adapter=desk.checkpoint("ChatGLM3", method))


def test_a_key_that_holds_settings_itself_is_told_as_it_is(desk: Desk, tmp_path: Path) -> None:
    other = Path(shutil.copytree(desk.base("GLM-4-hf"), tmp_path / "other"))
    held = json.loads((other / "config.json").read_text(encoding="utf-8"))["rope_parameters"]
    edit(other / "config.json", rope_parameters={**held, "rope_theta": 5.0})
    with pytest.raises(CheckpointError, match=r"rope_parameters is \{.*, but .* has \{.*'rope_theta': 5.0"):
        load_model(other, adapter=desk.checkpoint("GLM-4-hf", "lora"))


def edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file, a card's seal taken out."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("sha256", None)
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


# A wrong tokenizer or chat format


def test_the_tokenizer_of_another_text_is_refused_by_the_probe_where_its_file_was_not_recorded(
    desk: Desk, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk.base("ChatGLM3"), tmp_path / "other"))
    run = Path(shutil.copytree(desk.checkpoint("ChatGLM3", "lora"), tmp_path / "run"))
    edit(run / "glmtune.json", base=str(other), tokenizer_sha256={})
    vocabulary = other / "tokenizer.model"
    vocabulary.write_bytes(vocabulary.read_bytes().replace("你".encode(), "您".encode()))
    with pytest.raises(CheckpointError, match="another tokenizer or template: this one encodes the probe"):
        load_tokenizer(run)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("opened", [load_model, load_tokenizer, "adapters"])
def test_a_tokenizer_that_differs_where_the_probe_does_not_reach_is_refused_by_its_file(
    family: str, opened: Any, desk: Desk, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk.base(family), tmp_path / "other"))
    run = Path(shutil.copytree(desk.checkpoint(family, "lora"), tmp_path / "run"))
    edit(run / "glmtune.json", base=str(other))
    open_it = (lambda path: Adapters(other).add("run", path)) if opened == "adapters" else opened
    open_it(run)
    (name,) = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))["tokenizer_sha256"]
    damage_one_word(other / name)
    with pytest.raises(CheckpointError, match=f"{name}: not the tokenizer's file of training") as caught:
        open_it(run)
    assert caught.value.hint


def damage_one_word(path: Path) -> None:
    """Of a vocabulary, in the same length."""
    content = path.read_bytes()
    if path.name == "tokenizer.json":
        path.write_bytes(content + b"\n")
    else:
        at = content.rindex(b"e")
        path.write_bytes(content[:at] + b"f" + content[at + 1 :])


def test_a_base_without_its_tokenizer_still_opens(desk: Desk, tmp_path: Path) -> None:
    other = Path(shutil.copytree(desk.base("ChatGLM3"), tmp_path / "other"))
    (other / "tokenizer.model").unlink()
    run = desk.checkpoint("ChatGLM3", "lora")
    assert torch.equal(
        last_logits(load_model(other, adapter=run), [5, 6]), last_logits(load_model(run), [5, 6])
    )


def test_a_chat_format_that_has_changed_since_is_refused(copy: Callable[[str, str], Path]) -> None:
    run = copy("ChatGLM3", "lora")
    edit(run / "glmtune.json", template="chatglm2")
    with pytest.raises(CheckpointError, match="another tokenizer or template: this one encodes the probe"):
        load_tokenizer(run)


@pytest.mark.parametrize("opened", [load_model, load_tokenizer])
def test_another_chat_format_than_it_was_trained_with_cannot_be_asked_for(
    opened: Callable[..., Any], desk: Desk
) -> None:
    with pytest.raises(CheckpointError, match="trained with the chat format chatglm3, not with chatglm2"):
        opened(desk.checkpoint("ChatGLM3", "lora"), template="chatglm2")


# Wrong files


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def change(folder: Path, make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = make(load_file(weights_of(folder)))
    save_file(tensors, weights_of(folder), {"format": "pt"})


DECIDING = {"adalora": "lora_E", "lora": "lora_B", "dora": "lora_B"}


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_an_update_of_zeros_is_refused(
    family: str, method: str, copy: Callable[[str, str], Path], desk: Desk
) -> None:
    run = copy(family, method)
    if method == "freeze":
        base = load_file(desk.base(family) / "model.safetensors")
        change(run, lambda tensors: {name: base[name] for name in tensors})
    else:
        part = DECIDING.get(method, "")
        change(run, lambda tensors: {n: t * 0 if part in n else t for n, t in tensors.items()})
    assert ": changes nothing: its " in refusal(run)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_keys_of_other_names_are_refused(family: str, method: str, copy: Callable[[str, str], Path]) -> None:
    run = copy(family, method)
    first = sorted(load_file(weights_of(run)))[0]
    change(run, lambda tensors: {f"{n}.old" if n == first else n: t for n, t in tensors.items()})
    assert any(word in refusal(run) for word in ("is left over", "is missing", "no transformer.prefix_enc"))


@pytest.mark.parametrize("left", [0, 443, -100])
@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_file_that_was_cut_off_is_refused(
    family: str, method: str, left: int, copy: Callable[[str, str], Path]
) -> None:
    run = copy(family, method)
    weights_of(run).write_bytes(weights_of(run).read_bytes()[:left])
    assert "truncated or damaged" in refusal(run)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_the_file_of_a_run_of_another_size_is_refused(
    family: str, method: str, copy: Callable[[str, str], Path], desk: Desk, tmp_path: Path
) -> None:
    run = copy(family, method)
    other = make_checkpoint(desk.base(family), tmp_path / "big", {**METHODS[method], **OTHER_SIZE[method]})
    shutil.copyfile(weights_of(other), weights_of(run))
    said = refusal(run)
    assert any(words in said for words in ("size mismatch for", "do not match this", "its tensors make it"))


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_the_file_of_another_run_of_the_same_size_is_refused(
    family: str, method: str, copy: Callable[[str, str], Path], desk: Desk, tmp_path: Path
) -> None:
    run = copy(family, method)
    other = make_checkpoint(desk.base(family), tmp_path / "other", METHODS[method], seed=2)
    shutil.copyfile(weights_of(other), weights_of(run))
    assert "these are not the weights that were saved: their length is " in refusal(run)


def swap_layers(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.translate(str.maketrans("01", "10")): tensor for name, tensor in tensors.items()}


WRONG_WEIGHTS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "lora_A zeroed": ("lora", lambda ts: {n: t * 0 if "lora_A" in n else t for n, t in ts.items()}),
    "lora_A of adalora zeroed": (
        "adalora",
        lambda ts: {n: t * 0 if "lora_A" in n else t for n, t in ts.items()},
    ),
    "dora's lengths zeroed": (
        "dora",
        lambda ts: {n: t * 0 if "magnitude" in n else t for n, t in ts.items()},
    ),
    "layers swapped": ("lora", swap_layers),
    "the sign turned": ("lora", lambda ts: {n: -t if "lora_B" in n else t for n, t in ts.items()}),
    "a prefix upside down": ("ptuning", lambda ts: {n: t.flip(0).contiguous() for n, t in ts.items()}),
    "frozen weights upside down": ("freeze", lambda ts: {n: t.flip(0).contiguous() for n, t in ts.items()}),
}


@pytest.mark.parametrize("what", WRONG_WEIGHTS)
def test_weights_of_the_same_length_are_refused_if_any_number_is_another(
    what: str, copy: Callable[[str, str], Path]
) -> None:
    method, make = WRONG_WEIGHTS[what]
    run = copy("ChatGLM3", method)
    change(run, make)
    assert "these are not the weights that were saved: their hash is " in refusal(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_alpha", 7), ("use_rslora", True), ("fan_in_fan_out", True), ("alpha_pattern", {"dense": 3})],
)
def test_settings_beside_the_weights_are_those_that_were_saved(
    key: str, value: Any, copy: Callable[[str, str], Path]
) -> None:
    run = copy("ChatGLM3", "lora")
    edit(run / "adapter_config.json", **{key: value})
    assert f"adapter_config.json: {key} is {json.dumps(value)}, recorded is " in refusal(run)


def test_the_order_in_which_peft_names_the_targets_does_not_matter(
    copy: Callable[[str, str], Path],
) -> None:
    run = make_checkpoint_of_two_targets(copy)
    before = last_logits(load_model(run, dtype="fp32"), [5, 6])
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    edit(run / "adapter_config.json", target_modules=config["target_modules"][::-1], peft_version="9")
    assert torch.equal(last_logits(load_model(run, dtype="fp32"), [5, 6]), before)


def make_checkpoint_of_two_targets(copy: Callable[[str, str], Path]) -> Path:
    run = copy("ChatGLM3", "lora")
    base = Path(json.loads((run / "glmtune.json").read_text(encoding="utf-8"))["base"])
    method = {"name": "lora", "target_modules": ["query_key_value", "dense"]}
    return make_checkpoint(base, run / "two", method)


@pytest.mark.parametrize("method", METHODS)
def test_other_logits_than_recorded_are_refused(method: str, copy: Callable[[str, str], Path]) -> None:
    run = copy("ChatGLM3", method)
    probe = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))["probe"]
    edit(run / "glmtune.json", probe={**probe, "tuned": probe["base"]})
    assert "the tuned model answers the probe with logits off by " in refusal(run)


@pytest.mark.parametrize("method", [name for name in METHODS if "p" not in name])
def test_a_checkpoint_that_learned_nothing_is_saved_but_not_opened(
    method: str, desk: Desk, tmp_path: Path
) -> None:
    run = make_checkpoint(desk.base("ChatGLM3"), tmp_path / "run", METHODS[method], by=0)
    assert ": changes nothing: its " in refusal(run)


# A damaged card

DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "a type that there is not": (
        {"dtype": "float99"},
        "dtype: one of float32, bfloat16, float16, got 'float99'",
    ),
    "a quantisation that there is not": ({"quant": "int3"}, "quant"),
    "a length that is no number": ({"norm": "x"}, "norm"),
    "a length that is not finite": ({"norm": float("nan")}, "norm"),
    "no base": ({"base": None}, "base"),
    "a method that is no object": ({"method": "lora"}, "method"),
    "a fingerprint of nothing": ({"fingerprint": {}}, "fingerprint"),
    "a hash that is none": ({"weights_sha256": 5}, "weights_sha256"),
    "stop ids that are no numbers": ({"stop_ids": ["a"]}, "stop_ids.0"),
    "a key of no meaning": ({"colour": "red"}, "colour"),
    "a probe that is a list": ({"probe": [1]}, "probe"),
}
DAMAGED_PROBES: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"tokens": [], "base": [], "tuned": []}, "probe.tokens"),
    "no prompt": ({"input_ids": []}, "probe.input_ids"),
    "short": ({"base": [0.5]}, "probe"),
    "a token of no vocabulary": ({"tokens": [10**7], "base": [0.5], "tuned": [0.5]}, "probe: token 10000000"),
    "a prompt of no vocabulary": ({"input_ids": [10**7]}, "probe: token 10000000"),
    "a negative token": ({"tokens": [-1], "base": [0.5], "tuned": [0.5]}, "probe.tokens.0"),
    "not finite": ({"tokens": [1], "base": [0.5], "tuned": [float("inf")]}, "probe.tuned.0"),
    "a key too much": ({"colour": "red"}, "probe.colour"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_card_with_a_damaged_value_is_refused_by_its_key(
    what: str, copy: Callable[[str, str], Path]
) -> None:
    values, place = DAMAGED[what]
    run = copy("ChatGLM3", "lora")
    edit(run / "glmtune.json", **values)
    said = refusal(run)
    assert said.startswith(f"{run / 'glmtune.json'}: {place}")
    assert "__init__" not in said


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("what", DAMAGED_PROBES)
def test_a_damaged_probe_is_refused_by_its_key(
    what: str, method: str, copy: Callable[[str, str], Path], desk: Desk, tmp_path: Path
) -> None:
    values, place = DAMAGED_PROBES[what]
    full = {"name": "full"}
    is_full = method == "full"
    run = (
        make_checkpoint(desk.base("ChatGLM3"), tmp_path / "full", full, by=0.01)
        if is_full
        else copy("ChatGLM3", method)
    )
    probe = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))["probe"]
    edit(run / "glmtune.json", probe={**probe, **values})
    assert refusal(run).startswith(f"{run / 'glmtune.json'}: {place}")


def test_a_card_without_what_every_card_has_is_refused(copy: Callable[[str, str], Path]) -> None:
    run = copy("ChatGLM3", "lora")
    (run / "glmtune.json").write_text('{"base": "x", "template": "chatglm3"}', encoding="utf-8")
    assert refusal(run).startswith(f"{run / 'glmtune.json'}: method: ")


# Nothing was recorded


def test_a_card_of_an_earlier_version_opens_with_what_can_be_checked(
    copy: Callable[[str, str], Path], told: Callable[[str], str]
) -> None:
    run = copy("ChatGLM3", "lora")
    card = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))
    old = (
        "base",
        "template",
        "method",
        "system",
        "source_prefix",
        "quant",
        "glmtune_version",
        "base_revision",
    )
    (run / "glmtune.json").write_text(json.dumps({key: card[key] for key in old}), encoding="utf-8")
    load_model(run)
    said = told("nothing recorded; different from the base's by")
    assert said.endswith("; not proven, since nothing of it was recorded: its base, its weights, its answers")


@pytest.mark.parametrize(
    ("key", "what"),
    [("fingerprint", "its base"), ("probe", "its answers"), ("weights_sha256", "its weights")],
)
@pytest.mark.parametrize("opened", ["load_model", "Adapters"])
def test_what_a_card_does_not_record_is_said_not_to_be_proven(
    key: str, what: str, opened: str, copy: Callable[[str, str], Path], told: Callable[[str], str], desk: Desk
) -> None:
    run = copy("ChatGLM3", "lora")
    card = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))
    del card[key], card["sha256"]
    (run / "glmtune.json").write_text(json.dumps(card), encoding="utf-8")
    if opened == "Adapters":
        Adapters(desk.base("ChatGLM3")).add("run", run)
    else:
        load_model(run)
    assert told(f"; not proven, since nothing of it was recorded: {what}").endswith(what)
    (unproven,) = [check for check in verify(run) if not check.is_proven]
    assert unproven.found == what


@pytest.mark.parametrize("key", ["fingerprint", "probe"])
def test_a_proof_that_is_null_is_no_proof(key: str, copy: Callable[[str, str], Path]) -> None:
    run = copy("ChatGLM3", "lora")
    edit(run / "glmtune.json", **{key: None})
    assert f"glmtune.json: {key}: null, so it proves nothing" in refusal(run)


def test_a_card_says_nothing_of_what_it_does_not_record(tmp_path: Path) -> None:
    Card(base="/base", template="chatglm3", method={"name": "lora"}).save(tmp_path)
    assert not {"fingerprint", "probe"} & json.loads((tmp_path / "glmtune.json").read_text()).keys()
    assert read_card(tmp_path) == Card(base="/base", template="chatglm3", method={"name": "lora"})


def test_verify_gives_each_check_with_its_figures(desk: Desk) -> None:
    checks = verify(desk.checkpoint("ChatGLM3", "lora"), dtype="fp32")
    assert [check.name for check in checks] == ["tokenizer", "base", "update", "logits", "files"]
    assert all(check.is_proven and check.proves_effect for check in checks)
    with pytest.raises(CheckpointError, match="not the tokenizer's file of training"):
        verify(desk.checkpoint("ChatGLM3", "lora"), base=desk.base("GLM-4"))


@pytest.mark.parametrize("what", ["nan", "inf", "too large for its type"])
def test_an_adapter_that_answers_no_numbers_is_refused(
    what: str, copy: Callable[[str, str], Path], desk: Desk
) -> None:
    run = copy("ChatGLM3", "lora")
    (run / "glmtune.json").unlink()
    value = 3e38 if what.startswith("too") else float(what)
    change(run, lambda tensors: {n: t.fill_(value) if "lora_A" in n else t for n, t in tensors.items()})
    words = "with it the logits are not finite" if what.startswith("too") else "lora_A.weight holds"
    with pytest.raises(CheckpointError, match=words):
        load_model(desk.base("ChatGLM3"), adapter=run, dtype="fp32")


def test_an_adapter_without_a_card_must_still_change_something(
    copy: Callable[[str, str], Path], desk: Desk
) -> None:
    run = copy("ChatGLM3", "lora")
    (run / "glmtune.json").unlink()
    load_model(desk.base("ChatGLM3"), adapter=run)
    change(run, lambda tensors: {n: t * 0 if "lora_B" in n else t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match="changes nothing: its update is zero everywhere"):
        load_model(desk.base("ChatGLM3"), adapter=run)
