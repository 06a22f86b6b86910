"""`examples/knowledge_base.py`: LangChain finds passages, and a served model is asked with them."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from calling import saying
from glmtune import encode_messages
from glmtune.templates import Message
from serving import Served, serving

ROOT = Path(__file__).parents[3]
TEXTS = {
    "shop.txt": "营业时间是九点到八点。\n\n退货：七天以内可以退货，请带上小票。\n\n停车场在店的后面。\n",
    "tea.md": "# 茶\n\n绿茶用八十度的水泡两分钟。\n\nBlack tea takes boiling water and four minutes.\n",
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("knowledge_base", ROOT / "examples" / "knowledge_base.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in TEXTS]


@pytest.fixture(scope="module")
def glm_tiny() -> Iterator[Served]:
    with serving(Path("glm-tiny")) as running:
        yield running


@pytest.mark.parametrize(
    ("question", "source", "words"),
    [
        ("买了的东西可以退货吗？", "shop.txt", "带上小票"),
        ("绿茶怎么泡？", "tea.md", "八十度"),
        ("How long does black tea take?", "tea.md", "four minutes"),
        ("车停在哪里？停车场？", "shop.txt", "后面"),
    ],
)
def test_the_first_passage_is_the_one_that_answers(
    example: ModuleType, files: list[Path], question: str, source: str, words: str
) -> None:
    first, *_ = example.build_retriever(files).invoke(question)
    assert first.metadata["source"] == source
    assert words in first.page_content


def test_the_model_reads_the_passages_and_its_answer_is_shown(
    example: ModuleType, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with saying(tmp_path, "glm4", Message("assistant", "带上小票，七天以内。")) as server:
        question = "可以退货吗？"
        example.main([*map(str, files), "--url", f"{server.served.url}/v1", "--question", question])
        shown = capsys.readouterr().out
        passages = example.build_retriever(files).invoke(question)
        asked = example.PROMPT.invoke(
            {"passages": "\n\n".join(each.page_content for each in passages), "question": question}
        )
        content = asked.to_messages()[0].content
        assert "请带上小票" in content
        expected = encode_messages(server.tokenizer, [{"role": "user", "content": content}])
        assert server.model.prompt == expected
    assert shown.startswith("带上小票，七天以内。\n  [shop.txt] 退货：")


def test_glm_tiny_answers_from_the_files(
    example: ModuleType, files: list[Path], glm_tiny: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(
        [str(files[0]), "--url", f"{glm_tiny.url}/v1", "--question", "几点营业？", "--question", "qwx"]
    )
    answer, source, nothing = capsys.readouterr().out.strip().split("\n")
    assert answer
    assert source.strip().startswith("[shop.txt]")
    assert nothing == "没有一段资料和问题有相同的词。"


def test_a_server_that_is_not_there_is_said(example: ModuleType, files: list[Path]) -> None:
    with pytest.raises(SystemExit, match="is `glmtune serve` running there"):
        example.main([*map(str, files), "--url", "http://127.0.0.1:9/v1", "--question", "退货"])
