"""Trains the tokenizer of `glm-tiny` and writes it as ChatGLM3's official folder has it.

    python -m tools.glm_tiny.tokenizer SENTENCES FOLDER [--vocab-size 2807]

A sentencepiece BPE model with the official settings (Source: trainer_spec and normalizer_spec inside
https://huggingface.co/THUDM/chatglm3-6b tokenizer.model): text is taken as it is, a space goes in front,
digits stand alone, what has no piece becomes bytes. The nine control tokens are no pieces: they take the ids
right after the last piece.
"""

import argparse
import json
from pathlib import Path

import sentencepiece

VOCAB_SIZE = 2807
LONGEST_PIECE = 6
"""In characters; without it whole phrases of the corpus become pieces that no other text has."""
MAX_VOCAB_SIZE = 6000

CONFIG = {
    "name_or_path": "glmtune/glm-tiny",
    "template": "chatglm3",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
}
"""`template` is the key that folders saved by glmtune carry; the name has no `chatglm3` to tell it by."""


def train(sentences: Path, folder: Path, vocab_size: int = VOCAB_SIZE, *, coverage: float = 1.0) -> None:
    """Write tokenizer.model and tokenizer_config.json. ValueError for a vocabulary over 6,000 pieces.

    `coverage`: the share of the text's characters that have a piece of their own; the rest becomes bytes.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"--vocab-size: {vocab_size} is more than {MAX_VOCAB_SIZE}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tokenizer.model").open("wb") as model, sentences.open(encoding="utf-8") as lines:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line.rstrip("\n") for line in lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentencepiece_length=LONGEST_PIECE,
            character_coverage=coverage,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    text = json.dumps(CONFIG, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the tokenizer of glm-tiny.")
    parser.add_argument("sentences", type=Path, help="sentences.txt, as the corpus generator writes it")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    args = parser.parse_args()
    train(args.sentences, args.folder, args.vocab_size)


if __name__ == "__main__":
    main()
