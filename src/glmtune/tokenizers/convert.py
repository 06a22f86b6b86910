"""The official vocabularies as a tokenizer.json and a Jinja template, for programs that read nothing else.

For interop only: in both, a control token spelled in a user's text becomes that token (`</s>`, `<|user|>`).
`encode_messages` has no such hole, and is what everything else here uses.
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
"""How sentencepiece writes a space."""
RENAMED = {"sop": "<sop>", "eop": "<eop>"}
"""ChatGLM2's and ChatGLM3's tokens whose names are parts of words: as added tokens they would be cut out of
`sophisticated`. Only the spelling differs, the ids do not."""

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
"""Of text conversations, by chat format, where the folder has none of its own.

Source: huggingface.co/THUDM/chatglm3-6b tokenizer_config.json for the space after the line break, which makes
the content begin as a text of its own does.
"""


def convert_tokenizer(tokenizer: Tokenizer) -> FileTokenizer | None:
    """The tokenizer as `tokenizers` has it; None for a family whose vocabulary cannot be converted."""
    if isinstance(tokenizer, ChatGLM4Tokenizer):
        return _from_ranks(tokenizer)
    if isinstance(tokenizer, ChatGLMTokenizer):
        return _from_pieces(tokenizer)
    return None


def chat_template_of(tokenizer: Tokenizer) -> str:
    """The Jinja template of a tokenizer's chats; the folder's own if it has one that fits.

    Raises ConfigError for one that loops or fails.
    """
    own = tokenizer.chat_template
    if isinstance(own, str) and not isinstance(tokenizer, ChatGLMTokenizer):
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        return own  # ChatGLM3's spells `sop`, see RENAMED
    return CHAT_TEMPLATES[require_template(tokenizer.template, tokenizer.vocab_file)]


def _from_pieces(tokenizer: ChatGLMTokenizer) -> FileTokenizer:
    """Byte-pair encoding of sentencepiece's pieces: of all pairs that make a piece the best piece first.

    A space is put in front of every stretch between control tokens, as sentencepiece does with a text.
    """
    model = tokenizer.sp_model
    size = model.get_piece_size()
    pieces = {model.id_to_piece(i): i for i in range(size)}
    silent = {i for i in range(size) if model.is_byte(i) or model.is_control(i) or model.is_unknown(i)}
    plain = {piece: (-model.get_score(i), i) for piece, i in pieces.items() if i not in silent}
    bpe = models.BPE(
        vocab=pieces, merges=list(_merges(plain)), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    converted = FileTokenizer(bpe)
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
    """Byte-level byte-pair encoding of tiktoken's ranks; a word with a rank is that token at once."""
    letters = bytes_to_unicode()
    ranks = {"".join(letters[b] for b in token): i for token, i in tokenizer.ranks.items()}
    plain = {token: (float(i), i) for token, i in ranks.items()}
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
    """Every pair of tokens that makes a token, the best such token first."""
    for whole, _ in sorted(plain.items(), key=lambda item: item[1]):
        for cut in range(1, len(whole)):
            if whole[:cut] in plain and whole[cut:] in plain:
                yield whole[:cut], whole[cut:]


def _add_control(converted: FileTokenizer, names: list[str]) -> None:
    converted.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _begin_with_prefix(converted: FileTokenizer, end: str) -> FileTokenizer:
    """`tokenizer(text)` begins as the official one's, and a pair ends as its."""
    names = ("[gMASK]", "<sop>", end)
    ids = [(name, converted.token_to_id(name)) for name in names]
    converted.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", pair=f"[gMASK] <sop> $A $B:0 {end}:0", special_tokens=ids
    )
    return converted
