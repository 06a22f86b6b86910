"""Tiny tokenizers in the official layout, trained on the spot from this project's own words.

`tiny_sentencepiece` makes a ChatGLM2/ChatGLM3 tokenizer, `tiny_tiktoken` a GLM-4 one, `tiny_ice` that of a
ChatGLM-6B, `tiny_json` one of the families in transformers; add a config.json and weights for a whole model
folder. All hold every byte, so any text can be encoded.
"""

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from glmtune.templates import TEMPLATES
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.files import icetk_pieces

TEXT = """
今天天气很好，我们一起去公园散步。 你好，请问图书馆怎么走？
一直往前走，过了桥就到了。 谢谢你的帮助！ 不客气，祝你愉快。
这件衬衫是白色的，料子柔软，适合夏天穿。 它的价格是多少？
我想学习怎么训练一个语言模型。 先准备数据，再选择方法，然后开始训练。
The weather is fine today, so we walk to the park. How do I get to the library?
Go straight on and cross the bridge. Thank you for your help! You are welcome.
This shirt is white, soft and good for summer. How much does it cost?
I want to learn how to train a language model. First prepare the data.
1 2 3 4 5 6 7 8 9 10 问： 答： [Round 1] # * : ; ( ) { } " ' - + = / def return x y
"""

GLM4_CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}{% if item['content'] %}<|{{ item['role'] }}|>"
    "{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_sentencepiece(folder: Path, template: str | None = "chatglm3") -> Path:
    """Write tokenizer.model and tokenizer_config.json of a tiny ChatGLM2 or ChatGLM3; None: of either."""
    names = {"chatglm2": "THUDM/chatglm2-6b", "chatglm3": "THUDM/chatglm3-6b"}
    config: dict[str, Any] = {
        "tokenizer_class": "ChatGLMTokenizer",
        "remove_space": False,
        "do_lower_case": False,
    }
    if template is not None:
        config["name_or_path"] = names[template]
    return _write(folder, _sentencepiece(), config)


def tiny_tiktoken(folder: Path, template: str = "glm4") -> Path:
    """Write tokenizer.model and tokenizer_config.json of a tiny GLM-4: chat revision, or "glm4_base"."""
    ranks, names = _ranks(), TEMPLATES[template].control_tokens
    first = len(ranks.splitlines())
    facts = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(first + i): {"content": name, **facts} for i, name in enumerate(names)},
        "additional_special_tokens": list(names),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
    if template == "glm4":
        config["chat_template"] = GLM4_CHAT_TEMPLATE
    return _write(folder, ranks, config)


def tiny_json(folder: Path, template: str = "glm4_0414") -> Path:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a family in transformers."""
    from published import PUBLISHED

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(_byte_pairs())
    thinking = ("<think>", "<tool", "</", "<arg")  # as published, these are added tokens but not special ones
    for name in TEMPLATES[template].control_tokens:
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=not name.startswith(thinking))])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(PUBLISHED[template], encoding="utf-8")
    return folder


NUM_IMAGES = {"early": 20_000, "mid": 20_000, "late": 0}
"""Ids in front of ChatGLM-6B's vocabulary."""


def tiny_ice(folder: Path, revision: str = "late") -> Path:
    """Write the tokenizer's files of a tiny ChatGLM-6B, and a config.json that tells the revision.

    The config has the ids of the revision's layout, but no sizes of a model.
    """
    is_late = revision == "late"
    vocabulary = _ice_pieces() + (icetk_pieces() if is_late else b"")
    first = NUM_IMAGES[revision]
    control = first + sentencepiece.SentencePieceProcessor(model_proto=_ice_pieces()).get_piece_size()
    ids = {"bos_token_id": control + 4, "eos_token_id": control + 5}
    ids |= {"pad_token_id": first + 3} if revision != "early" else {}
    ids |= {"mask_token_id": control, "gmask_token_id": control + 1} if is_late else {}
    config = {"model_type": "chatglm", "position_encoding_2d": True, "vocab_size": control + 512, **ids}
    tokenizer: dict[str, Any] = {
        "tokenizer_class": "ChatGLMTokenizer",
        "bos_token": "<sop>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **({"eos_token": "<eop>", "end_token": "</s>"} if is_late else {"eos_token": "</s>"}),
        "remove_space": False,
        "do_lower_case": False,
    }
    _write(folder, vocabulary, tokenizer, "ice_text.model")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


IN_TRANSFORMERS = {"glm4_0414": "glm4", "glmz1": "glm4", "glm45": "glm4_moe", "glm45_nothink": "glm4_moe"}
"""The model_type of a chat format that transformers' own models speak."""


def tiny_tokenizer(folder: Path, template: str) -> Any:
    """A tiny tokenizer of any chat format."""
    if template == "chatglm":
        return read_tokenizer(tiny_ice(folder))
    if template in IN_TRANSFORMERS:
        tiny_json(folder, template)
        (folder / "config.json").write_text(f'{{"model_type": "{IN_TRANSFORMERS[template]}"}}')
        return read_tokenizer(folder, template)
    build = tiny_sentencepiece if template in ("chatglm2", "chatglm3") else tiny_tiktoken
    return read_tokenizer(build(folder, template), template)


def _write(folder: Path, vocabulary: bytes, config: dict[str, Any], name: str = "tokenizer.model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(vocabulary)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return folder


@cache
def _sentencepiece() -> bytes:
    """420 pieces: <unk>, <s>, </s>, 256 bytes, and the commonest characters and words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.strip().splitlines() * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def _ice_pieces() -> bytes:
    """180 pieces: <unk>, <s>, </s>, <pad>, <n>, and the commonest characters and words; no control tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.strip().splitlines() * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=180,
        character_coverage=0.98,
        pad_id=3,
        user_defined_symbols=["<n>"],
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return model.getvalue()


@cache
def _ranks() -> bytes:
    """The 256 bytes, then pairs that build whole Chinese characters and short English words."""
    tokens = [bytes([value]) for value in range(256)]
    known = set(tokens)
    for word in sorted(set(TEXT.split()), key=lambda word: (-TEXT.count(word), word))[:60]:
        data = (" " + word if word.isascii() else word[:2]).encode()
        for end in range(2, len(data) + 1):
            if data[:end] not in known:
                known.add(data[:end])
                tokens.append(data[:end])
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


@cache
def _byte_pairs() -> str:
    """A tokenizer.json of the bytes and the commonest pairs, split as GLM-4's."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines() * 4, trainer)
    return str(tokenizer.to_str())
