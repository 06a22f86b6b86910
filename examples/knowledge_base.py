"""Answer questions from text files: LangChain retrieves passages, a served model reads them and answers.

    pip install "glmtune[knowledge]"
    glmtune serve runs/mine
    python examples/knowledge_base.py handbook.txt faq.md --question "周末可以退货吗？"

The passages that are found stand in front of the question. Without --question it asks for questions.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jieba
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_openai import ChatOpenAI
from openai import OpenAI, OpenAIError
from rank_bm25 import BM25Plus

PROMPT = ChatPromptTemplate.from_messages(
    [("user", "根据下面的资料回答问题；资料里没有的，就说不知道。\n\n{passages}\n\n问题：{question}")]
)


def words_of(text: str) -> list[str]:
    """The words of a text, Chinese ones too, without punctuation."""
    return [word for word in jieba.lcut_for_search(text.lower()) if word.isalnum()]


def read_passages(paths: Sequence[Path]) -> list[Document]:
    """The paragraphs of text files: blank lines separate them."""
    return [
        Document(part.strip(), metadata={"source": path.name})
        for path in paths
        for part in path.read_text(encoding="utf-8").split("\n\n")
        if part.strip()
    ]


class Passages(BaseRetriever):
    """LangChain's retriever over rank-bm25, which counts jieba's words."""

    passages: list[Document]
    index: Any
    """BM25 over the words of the passages."""
    most: int
    """Passages to return."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        words = words_of(query)
        found = self.index.get_top_n(words, self.passages, n=self.most)
        # BM25 ranks all passages: those without a word of the question do not help
        return [passage for passage in found if set(words) & set(words_of(passage.page_content))]


def build_retriever(paths: Sequence[Path], most: int = 3) -> Passages:
    """The retriever over the passages of these files."""
    passages = read_passages(paths)
    if not passages:
        sys.exit(f"no text in {', '.join(map(str, paths))}")
    index = BM25Plus([words_of(passage.page_content) for passage in passages])
    return Passages(passages=passages, index=index, most=most)


def answer(model: ChatOpenAI, passages: Sequence[Document], question: str) -> Iterator[str]:
    """The model's answer to a question with the passages in front of it, piece by piece."""
    chain = PROMPT | model | StrOutputParser()
    joined = "\n\n".join(passage.page_content for passage in passages)
    return chain.stream({"passages": joined, "question": question})


def converse(retriever: Passages, model: ChatOpenAI, questions: Iterator[str]) -> None:
    """Print for each question the answer and the passages that the model was given."""
    for question in questions:
        passages = retriever.invoke(question)
        if not passages:
            print("没有一段资料和问题有相同的词。")  # a model that is asked all the same makes something up
            continue
        for piece in answer(model, passages, question):
            print(piece, end="", flush=True)
        print()
        for passage in passages:
            print(f"  [{passage.metadata['source']}] {passage.page_content.splitlines()[0][:60]}")


def asked() -> Iterator[str]:
    """The questions that are typed; an empty line ends."""
    while question := input("问题> ").strip():
        yield question


def main(words: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Answer questions from text files.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--question", action="append", help="may be given again; left out: asked for")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="a name that /v1/models lists; the first one if left out")
    parser.add_argument("--passages", type=int, default=3)
    chosen = parser.parse_args(words)
    jieba.setLogLevel("WARNING")  # it tells on stderr how it loads its words
    retriever = build_retriever(chosen.files, chosen.passages)
    key = os.environ.get("GLMTUNE_API_KEY", "none")
    try:
        name = chosen.model or next(iter(OpenAI(base_url=chosen.url, api_key=key).models.list())).id
        model = ChatOpenAI(base_url=chosen.url, api_key=key, model=name, temperature=0)
        converse(retriever, model, iter(chosen.question) if chosen.question else asked())
    except OpenAIError as error:
        sys.exit(f"{chosen.url}: {error}; is `glmtune serve` running there?")


if __name__ == "__main__":
    main()
