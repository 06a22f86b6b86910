"""A family of transformers' kind, added by a row and its chat format's function: nothing else is touched.

Run by its path with a folder to work in. What other tables say of each family they make of the rows as they
are loaded, so the row is there before them, as it is for a row that is written into `families.py`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from glmtune.families import FAMILIES, family_in_transformers
from glmtune.template_rules import reads
from glmtune.templates import TEMPLATES
from glmtune.templates.messages import Message, is_learned
from glmtune.templates.turns import Turn, turn_format

PUBLISHED = """{% for m in messages %}<|{{ m.role }}|> {{ m.content }}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def llama_turns(messages: Sequence[Message], _name: str) -> list[Turn]:
    return [Turn(message.role, (f" {message.content}",), is_learned(message)) for message in messages]


FACTS = {name: getattr(TEMPLATES["glm4"], name) for name in ("stop_tokens", "end_of_text", "control_tokens")}
TEMPLATES["llama"] = turn_format(llama_turns, (), "<|user|>", title="Llama", **FACTS)
FAMILIES["Llama"] = family_in_transformers(
    "llama", ("llama",), (("a blank in its chat_template", reads("llama", "|> {{ m.content")),), "llama"
)


def main(work: Path) -> None:
    import models
    import published
    from glmtune import GlmtuneError, encode_messages, evaluate, load_tokenizer, train, verify
    from glmtune.families import identify
    from glmtune.recipe import load_recipe
    from glmtune.workflows.early import training_recipe
    from glmtune.workflows.events import Saved
    from glmtune.workflows.execute import training

    published.PUBLISHED["llama"] = PUBLISHED
    models.HF_FAMILIES["Llama"] = ("llama", "llama")
    folder = models.tiny_hf_folder(work / "llama", "Llama")
    known = identify(folder)
    assert (known.family, known.template) == ("Llama", "llama")
    talk = [
        {"role": "user", "content": "你好 1"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "?"},
    ]
    theirs = models.load_tokenizer_of(folder).apply_chat_template(
        talk, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encode_messages(load_tokenizer(folder), talk) == theirs
    data = {"train": "examples/adverts.jsonl", "max_rows": 6, "max_tokens": 160, "overlong": "cut_any"}
    settings = {
        "model": str(folder),
        "template": "llama",
        "data": data,
        "train": {"steps": 2, "batch_size": 2, "save_every": 1},
    }
    run = work / "run"
    begun = training(training_recipe({**settings, "output": str(run)}))
    while not isinstance(next(begun), Saved):
        pass
    begun.close()
    assert load_recipe(run / "recipe.yaml").template == "llama"
    assert train(run, resume=True, quiet=True).metrics["steps"] == 2
    assert verify(run, quiet=True)
    scored = evaluate(
        {"model": str(run), "data.max_test_rows": 2, "evaluate.max_new_tokens": 4}, quiet=True
    ).scores
    assert scored["num_rows"] == 2
    try:
        train(settings, method="ptuning", output=work / "prefix", quiet=True)
    except GlmtuneError as err:
        assert "not possible with a Llama model" in str(err)
    else:
        raise AssertionError("a prefix needs a class of ours")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
