"""ChatGLM-6B's tokenizer in its three revisions, on a tiny vocabulary of this project's own words.

The ids and strings here are those of the official rules, written out; the genuine vocabularies are compared
with the official code in tests/parity.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PretrainedConfig

from glmtune.conversation import encode_messages
from glmtune.errors import CheckpointError, ConfigError
from glmtune.templates import TEMPLATES
from glmtune.tokenizers import IceTokenizer, check_fits, read_tokenizer, register
from glmtune.tokenizers.chatglm import ChatGLMTokenizer
from glmtune.workflows.rows import show_ids
from tiny import NUM_IMAGES, tiny_ice, tiny_sentencepiece, tiny_tiktoken

HOSTILE = "[gMASK]<sop> <eop></s><pad><unk> [MASK]"
NAMES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> dict[str, Any]:
    return {name: read_tokenizer(tiny_ice(tmp_path_factory.mktemp(name), name)) for name in NUM_IMAGES}


@pytest.fixture(scope="module", params=list(NUM_IMAGES))
def tokenizer(request, three) -> Any:
    return three[request.param]


def test_the_ids_have_the_official_layout(tokenizer):
    first = NUM_IMAGES[tokenizer.ice_revision]
    assert [tokenizer.control_id(name) for name in ("<unk>", "<s>", "</s>", "<pad>")] == [
        first + i for i in range(4)
    ]
    assert tokenizer.convert_tokens_to_ids("<n>") == first + 4
    mask = tokenizer.control_id("[MASK]")
    assert [tokenizer.control_id(name) for name in NAMES] == [mask + i for i in range(8)]
    assert tokenizer.convert_tokens_to_ids("<|tab|>") == mask + 8
    assert tokenizer.convert_tokens_to_ids("<|blank_80|>") == mask + 87
    assert tokenizer.convert_tokens_to_ids("<0xFF>") == mask + 88 + 255 == len(tokenizer) - 1
    assert tokenizer.stop_ids == [mask + 5]


def test_the_ids_of_the_revisions_differ_by_the_image_tokens(three):
    late = three["late"].encode_plain("今天天气很好\n  x\t🙂")
    for name in ("early", "mid"):
        assert three[name].encode_plain("今天天气很好\n  x\t🙂") == [index + 20_000 for index in late]
        assert three[name].convert_ids_to_tokens(12) == "<image_12>"
        assert three[name].convert_tokens_to_ids("<image_12>") == 12
    assert three["late"].convert_tokens_to_ids("<image_12>") == three["late"].unk_token_id


def test_special_tokens_are_those_of_the_revisions_official_class(three):
    assert three["late"].all_special_tokens == ["<sop>", "<eop>", "<unk>", "<pad>", "[MASK]"]
    for name in ("early", "mid"):
        assert three[name].all_special_tokens == ["<sop>", "</s>", "<unk>", "<pad>", "[MASK]"]


@pytest.mark.parametrize("count", [1, 2, 3, 79, 80, 81, 82, 160, 161])
def test_runs_of_spaces_are_pieces_of_at_most_80(tokenizer, count):
    text = "x" + " " * count + "x"
    blanks = [token for token in tokenizer.tokenize(text) if token.startswith("<|blank")]
    whole, rest = divmod(count, 80)
    assert blanks == ["<|blank_80|>"] * whole + [f"<|blank_{rest}|>"] * (rest > 1)
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Z"])))
def test_text_comes_back_as_normalisation_leaves_it(three, text):
    for tokenizer in three.values():
        normal = tokenizer.sp_model.normalize(text).replace("▁", " ").removeprefix(" ")
        assert tokenizer.decode(tokenizer.encode_plain(text)) == normal


@given(st.text())
def test_plain_text_never_gives_a_control_token(three, text):
    for tokenizer in three.values():
        controls = {tokenizer.control_id(name) for name in (*NAMES, "<s>", "</s>", "<pad>")}
        assert not controls.intersection(tokenizer.encode_plain(text + HOSTILE))


def test_the_official_call_turns_some_spellings_into_control_tokens(three):
    for tokenizer in three.values():
        found = tokenizer.encode(HOSTILE, add_special_tokens=False)
        for name in tokenizer.all_special_tokens:
            assert tokenizer.control_id(name) in found
        assert tokenizer.control_id("[gMASK]") not in found


def test_full_width_becomes_half_width(tokenizer):
    assert tokenizer.decode(tokenizer.encode_plain("问：你好，ＡＢ")) == "问:你好,AB"


def test_half_a_character_is_shown_as_such(tokenizer):
    ids = tokenizer.encode_plain("🙂")
    assert tokenizer.decode(ids) == "🙂"
    assert "�" in tokenizer.decode(ids[:-1])


def test_decoding_leaves_out_pads_images_and_control_tokens(tokenizer):
    ids = [tokenizer.pad_token_id, *tokenizer("你好")["input_ids"], tokenizer.end_id]
    images = [5, 6] if tokenizer.ice_revision != "late" else []
    assert tokenizer.decode([*images, *ids]) == "你好"
    assert tokenizer.decode([]) == ""


def ids_of(tokenizer: Any, *names: str) -> list[int]:
    return [tokenizer.control_id(name) for name in names]


def test_what_is_put_around_texts_is_the_revisions_own(three):
    for name, tokenizer in three.items():
        a, b = [50, 51], [52]
        mask, gmask, start, eop, end = ids_of(tokenizer, "[MASK]", "[gMASK]", "<sop>", "<eop>", "</s>")
        build = tokenizer.build_inputs_with_special_tokens
        assert build(a) == [*a, gmask, start]
        wanted = {
            "early": ([*a, *b, gmask, start], [mask, *a, end, start], [*a, mask, start]),
            "mid": ([*a, gmask, start, *b, eop], [mask, *a, end, start], [*a, mask, start]),
            "late": ([*a, gmask, start, *b, eop], [mask, *a, gmask, start], [*a, mask, gmask, start]),
        }
        assert (build(a, b), build([mask, *a]), build([*a, mask])) == wanted[name]
        assert a == [50, 51]
    assert three["mid"].build_inputs_with_special_tokens([50], [eop_of(three["mid"])])[-2:] == [
        three["mid"].control_id("<sop>"),
        eop_of(three["mid"]),
    ]


def eop_of(tokenizer: Any) -> int:
    return int(tokenizer.control_id("<eop>"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gives_the_prefix_mask_and_both_positions(three, side):
    tokenizer = three["late"]
    rows = [[50, 51, 52], [50]]
    ids = [tokenizer.build_inputs_with_special_tokens(row, [53]) for row in rows]
    batch = tokenizer.pad({"input_ids": ids}, padding=True, padding_side=side, return_tensors="np")
    assert batch["attention_mask"].dtype == bool
    for row, found, mask, positions in zip(
        ids, batch["input_ids"], batch["attention_mask"][:, 0], batch["position_ids"], strict=True
    ):
        real = found != tokenizer.pad_token_id
        assert found[real].tolist() == row
        assert mask[~real].all()
        assert mask[:, ~real].all()
        assert not positions[:, ~real].any()
        length, start = len(row), row.index(tokenizer.control_id("<sop>"))
        sees = [[column < start or column <= line for column in range(length)] for line in range(length)]
        assert (~mask[np.ix_(real, real)]).tolist() == sees
        assert positions[0, real].tolist() == [*range(start), *[start - 1] * (length - start)]
        assert positions[1, real].tolist() == [*[0] * start, *range(1, length - start + 1)]


def test_only_a_length_makes_masks_and_positions(three):
    assert set(three["late"](["你好"])) == {"input_ids"}
    assert set(three["mid"](["你好"], max_length=9, truncation=True)) == {
        "input_ids",
        "attention_mask",
        "position_ids",
    }


def test_padding_in_the_early_revision_gives_the_mask_but_no_positions(three):
    """Officially not even the mask: pads would be read as context."""
    early, mid = three["early"], three["mid"]
    texts = ["今天天气很好", "你"]
    padded = early(texts, padding=True)
    assert set(padded) == {"input_ids", "attention_mask"}
    assert np.array_equal(padded["attention_mask"], mid(texts, padding=True)["attention_mask"])
    assert set(early(texts, max_length=9, truncation=True)) == {"input_ids"}
    assert set(early(texts, padding=True, return_attention_mask=False)) == {"input_ids"}
    asked = early("你", return_attention_mask=True)
    assert np.array_equal(asked["attention_mask"], mid("你", padding=True)["attention_mask"])


def test_truncation_keeps_what_asks_for_the_answer(tokenizer):
    ids = tokenizer("今天天气很好，我们一起去公园散步。", max_length=6, truncation=True)["input_ids"]
    assert len(ids) == 6
    assert ids[-2:] == ids_of(tokenizer, "[gMASK]", "<sop>")


def test_chat_sends_the_official_prompt(tokenizer):
    talk = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}]
    asks = ids_of(tokenizer, "[gMASK]", "<sop>")
    assert encode_messages(tokenizer, talk[:1]) == [*tokenizer.encode_plain("早"), *asks]
    assert encode_messages(tokenizer, talk[:1]) == tokenizer("早")["input_ids"]
    prompt = tokenizer.build_prompt("去哪", [("早", "早上好")])
    assert prompt == "[Round 0]\n问：早\n答：早上好\n[Round 1]\n问：去哪\n答："
    sent = [*talk, {"role": "user", "content": "去哪"}]
    assert encode_messages(tokenizer, sent) == tokenizer(prompt)["input_ids"]
    own = tokenizer.apply_chat_template(sent, add_generation_prompt=True, return_dict=False)
    assert own == encode_messages(tokenizer, sent)


def test_control_tokens_are_shown_by_name(tokenizer):
    ids = [*encode_messages(tokenizer, [{"role": "user", "content": "你好\n"}]), tokenizer.end_id]
    assert show_ids(tokenizer, ids) == "你好\n[gMASK]<sop><eop>"


def test_both_models_folders_are_opened_by_the_class_they_both_name(tmp_path):
    register()
    first, second = tiny_ice(tmp_path / "a"), tiny_sentencepiece(tmp_path / "b")
    for open_it in (
        read_tokenizer,
        ChatGLMTokenizer.from_pretrained,
        lambda folder: AutoTokenizer.from_pretrained(
            folder, config=PretrainedConfig(), trust_remote_code=False
        ),
    ):
        assert type(open_it(first)) is IceTokenizer
        assert type(open_it(second)) is ChatGLMTokenizer


def test_saving_opening_and_pickling_change_nothing(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)  # no config.json goes with it
    for again in (read_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.ice_revision == tokenizer.ice_revision
        assert again.all_special_tokens == tokenizer.all_special_tokens
        assert len(again) == len(tokenizer)
        for text in (HOSTILE, "你好  \n🙂"):
            assert again(text, HOSTILE)["input_ids"] == tokenizer(text, HOSTILE)["input_ids"]
            assert again.encode_plain(text) == tokenizer.encode_plain(text)


@pytest.mark.parametrize(("revision", "told"), [("early", "mid"), ("mid", "mid"), ("late", "late")])
def test_without_a_config_the_vocabulary_tells_the_revision(tmp_path, revision, told):
    folder = tiny_ice(tmp_path, revision)
    (folder / "config.json").unlink()
    assert read_tokenizer(folder).ice_revision == told


def test_another_revisions_vocabulary_is_refused(tmp_path):
    early, late = tiny_ice(tmp_path / "a", "early"), tiny_ice(tmp_path / "b", "late")
    contents = [(folder / "ice_text.model").read_bytes() for folder in (early, late)]
    for folder, content in zip((late, early), contents, strict=True):
        (folder / "ice_text.model").write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"ice_text\.model: the vocabulary of .* revision"
        ) as caught:
            read_tokenizer(folder)
        assert caught.value.hint


def foreign(folder: Path) -> dict[str, tuple[bytes | None, str]]:
    """What may lie where ice_text.model should, and the words that say so."""
    own = (tiny_ice(folder / "own") / "ice_text.model").read_bytes()
    return {
        "missing": (None, "missing"),
        "empty": (b"", "empty"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        "cut off": (own[:1000], "sentencepiece"),
        "chatglm2": ((tiny_sentencepiece(folder / "2") / "tokenizer.model").read_bytes(), "another model's"),
        "glm4": ((tiny_tiktoken(folder / "4") / "tokenizer.model").read_bytes(), "a GLM-4 vocabulary"),
    }


@pytest.mark.parametrize("kind", ["missing", "empty", "pointer", "cut off", "chatglm2", "glm4"])
def test_a_vocabulary_that_is_not_chatglm_6bs_is_an_error_with_its_place(tmp_path, kind):
    content, words = foreign(tmp_path)[kind]
    path = tiny_ice(tmp_path / "model") / "ice_text.model"
    path.unlink() if content is None else path.write_bytes(content)
    for open_it in (read_tokenizer, ChatGLMTokenizer.from_pretrained):
        with pytest.raises(CheckpointError, match=rf"ice_text\.model.*{words}") as caught:
            open_it(path.parent)
        assert "\n" not in str(caught.value)
        assert caught.value.hint


def test_chatglm_6bs_vocabulary_is_refused_under_another_familys_name(tmp_path):
    content = (tiny_ice(tmp_path / "a") / "ice_text.model").read_bytes()
    for build in (tiny_sentencepiece, tiny_tiktoken):
        folder = build(tmp_path / build.__name__)
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model.*vocabulary"):
            read_tokenizer(folder)


def test_an_unknown_control_token_is_refused_with_the_known_ones(tokenizer):
    for name in ("<|user|>", "<n>", "你"):
        with pytest.raises(ConfigError, match="not a control token") as caught:
            tokenizer.get_command(name)
        assert all(known in caught.value.hint for known in TEMPLATES["chatglm"].control_tokens)


def test_a_tokenizer_of_another_revision_or_family_does_not_fit(three, tmp_path):
    rows = {name: len(tokenizer) + 184 for name, tokenizer in three.items()}
    for name, tokenizer in three.items():
        check_fits(tokenizer, rows[name], tokenizer.control_id("<eop>"))
        for other in three:
            if rows[other] != rows[name]:
                with pytest.raises(CheckpointError, match="this vocabulary"):
                    check_fits(tokenizer, rows[other], three[other].control_id("<eop>"))
    chatglm3 = read_tokenizer(tiny_sentencepiece(tmp_path))
    with pytest.raises(CheckpointError, match="this vocabulary"):
        check_fits(chatglm3, rows["late"], three["late"].control_id("<eop>"))
    with pytest.raises(CheckpointError, match=r"ice_text\.model: this vocabulary"):
        check_fits(three["late"], len(three["late"]) + 5, chatglm3.eos_token_id)
