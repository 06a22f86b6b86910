"""Convert the official vocabularies to tokenizer.json and Jinja templates, for programs that need those.

For interop only: in both, a control token spelled in a user's text becomes that token (`</s>`, `<|user|>`).
All of glmtune encodes with `encode_messages`, which has no such hole.
"""

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FileTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.families import require_template
from glmtune.tokenizers.chatglm import ChatGLMTokenizer
from glmtune.tokenizers.glm4 import SPLIT, ChatGLM4Tokenizer
from glmtune.tokenizers.protocol import Tokenizer

_SPACE = "\u2581"
"""The character that sentencepiece writes for a space."""
RENAMED = {"sop": "<sop>", "eop": "<eop>"}
"""New spellings of ChatGLM2's and ChatGLM3's tokens that are parts of words: as added tokens they would split
`sophisticated`. The ids stay."""

CHAT_TEMPLATES = {
    "chatglm2": (
        "{% for message in messages %}{% if loop.first %}[gMASK]<sop>{% endif %}"
        "{% if message['role'] == 'user' %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
        "[Round {{ loop.index0 // 2 + 1 }}]\n\n问：{{ message['content'] }}\n\n答："
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    ),
    "chatglm3": (
        "{% for message in messages %}{% if loop.first %}[gMASK]<sop>{% endif %}"
        "<|{{ message['role'] }}|>{{ message['metadata'] }}\n"
        "{% if message['content'] %} {{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "glm4_base": (
        "[gMASK]<sop>{% for message in messages %}{% if message['content'] %}<|{{ message['role'] }}|>"
        "{{ message['metadata'] }}\n{{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}
"""Jinja templates of text conversations by chat format, for folders that have none of their own.

Source: huggingface.co/THUDM/chatglm3-6b tokenizer_config.json for the space after the line break, which makes
the content begin as a text of its own does.
"""


def convert_tokenizer(tokenizer: Tokenizer) -> FileTokenizer | None:
    """Convert to a tokenizer of the `tokenizers` library; None if the vocabulary has no conversion."""
    if isinstance(tokenizer, ChatGLM4Tokenizer):
        return _from_ranks(tokenizer)
    if isinstance(tokenizer, ChatGLMTokenizer):
        return _from_pieces(tokenizer)
    return None


def chat_template_of(tokenizer: Tokenizer) -> str:
    """Return the Jinja template of a tokenizer's chats: the folder's own if it fits, else ours.

    Raises ConfigError for a template that loops or fails.
    """
    from_folder = tokenizer.chat_template
    # not ChatGLM3's own, which spells `sop`: see RENAMED
    if isinstance(from_folder, str) and not isinstance(tokenizer, ChatGLMTokenizer):
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        return from_folder
    return CHAT_TEMPLATES[require_template(tokenizer.template, tokenizer.vocab_file)]


def _from_pieces(tokenizer: ChatGLMTokenizer) -> FileTokenizer:
    """Build a byte-pair encoding of sentencepiece's pieces, the pieces of the best score merged first."""
    model = tokenizer.sp_model
    size = model.get_piece_size()
    pieces = {model.id_to_piece(i): i for i in range(size)}
    silent = {i for i in range(size) if model.is_byte(i) or model.is_control(i) or model.is_unknown(i)}
    plain = {piece: (-model.get_score(i), i) for piece, i in pieces.items() if i not in silent}
    bpe = models.BPE(
        vocab=pieces, merges=list(_merges(plain)), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    converted = FileTokenizer(bpe)
    # sentencepiece puts a space in front of a text, here of every stretch between control tokens
    converted.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    converted.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    names = [RENAMED.get(name, name) for name, _ in sorted(tokenizer.control_ids.items(), key=lambda i: i[1])]
    _add_control(converted, ["<unk>", "</s>", *names])
    return _begin_with_prefix(converted, "</s>")


def _from_ranks(tokenizer: ChatGLM4Tokenizer) -> FileTokenizer:
    """Build a byte-level byte-pair encoding of tiktoken's ranks."""
    letters = bytes_to_unicode()
    ranks = {"".join(letters[b] for b in token): i for token, i in tokenizer.ranks.items()}
    plain = {token: (float(i), i) for token, i in ranks.items()}
    # ignore_merges: as in tiktoken a word with a rank is a token at once, whether or not merges lead to it
    converted = FileTokenizer(models.BPE(vocab=ranks, merges=list(_merges(plain)), ignore_merges=True))
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    converted.decoder = decoders.ByteLevel()
    control = sorted(tokenizer.added_tokens_decoder.items())
    _add_control(converted, [str(token) for _, token in control])
    return _begin_with_prefix(converted, "<|endoftext|>")


def _merges(plain: Mapping[str, tuple[float, int]]) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that joins to a token, the best joined token first."""
    for whole, _ in sorted(plain.items(), key=lambda item: item[1]):
        for cut in range(1, len(whole)):
            if whole[:cut] in plain and whole[cut:] in plain:
                yield whole[:cut], whole[cut:]


def _add_control(converted: FileTokenizer, names: list[str]) -> None:
    converted.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _begin_with_prefix(converted: FileTokenizer, end: str) -> FileTokenizer:
    """Add the official prefix to `tokenizer(text)`, and the official end to a pair."""
    names = ("[gMASK]", "<sop>", end)
    ids = [(name, converted.token_to_id(name)) for name in names]
    converted.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", pair=f"[gMASK] <sop> $A $B:0 {end}:0", special_tokens=ids
    )
    return converted
