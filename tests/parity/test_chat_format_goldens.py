"""Our renderings beside those of the published chat templates: equal, or listed with the reason."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtune import render_messages
from glmtune.errors import DataError
from glmtune.templates import TEMPLATES
from glmtune.templates.answer_stream import AnswerStream, CallPiece

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "chat_formats.json").read_text("utf-8"))
OURS = {
    "glm-4-9b-chat-hf": "glm4",
    "glm-4-9b-chat-1m-hf": "glm4",
    "glm-4-0414": "glm4_0414",
    "glm-z1-0414": "glmz1",
    "glm-4.5": "glm45",
    "glm-4.5-first": "glm45",
}
NOT_45 = {"glm-4-9b-chat-hf", "glm-4-0414", "glm-z1-0414"}
ALL = NOT_45 | {"glm-4.5"}
CALLS = {
    "call_dict",
    "call_json_string",
    "call_null_content",
    "call_arguments_missing",
    "call_with_reasoning_round",
    "call_with_inline_think",
    "call_several",
    "call_results_reversed",
    "call_values",
    "call_string_like_json",
    "result_dict",
    "result_parts",
    "agentic_long",
}
DIFFERENCES: dict[str, list[tuple[set[str], set[str]]]] = {
    "OpenAI's calls, results and tools": [
        (NOT_45, CALLS),
        (
            {"glm-4-9b-chat-hf"},
            {"tools_one", "tools_strict_and_deferred", "tools_bare", "observation_role_tools"},
        ),
    ],
    "Arguments as JSON text": [({"glm-4.5"}, {"call_json_string", "call_arguments_missing"})],
    "Objects and parts from a tool": [({"glm-4.5"}, {"result_dict", "result_parts"})],
    "GLM-4's own form of calls": [({"glm-4.5"}, {"observation_role", "observation_role_tools"})],
    "Content in parts": [(NOT_45, {"content_parts_text", "content_parts_strings"})],
    "Role `developer`": [(ALL, {"developer_role"})],
}
"""Conversations that we render otherwise, by the reason that docs/sources.md gives."""
REFUSED = {
    "content_null_user": "must be text, got null",
    "content_parts_image": "holds parts that are no text: image_url",
    "result_outputs": "must be text, got",
    "result_tool_reference": "holds parts that are no text: tool_reference",
}
"""Conversations that we refuse, in every format."""


def rendered(template: str, golden: dict[str, Any], conversation: dict[str, Any]) -> str:
    return render_messages(
        template,
        conversation["messages"],
        tools=conversation["tools"],
        add_generation_prompt=golden["add_generation_prompt"],
        **golden["options"],
    )


def reason(name: str, conversation: str) -> str | None:
    found = [
        why
        for why, places in DIFFERENCES.items()
        if any(name in formats and conversation in conversations for formats, conversations in places)
    ]
    return found[0] if found else None


def odd(name: str, goldens: dict[str, Any], conversations: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each rendering that is not as it is listed above, and what is wrong with it."""
    for golden in goldens["renderings"]:
        which = golden["conversation"]
        if which in REFUSED:
            with pytest.raises(DataError, match=REFUSED[which]):
                rendered(OURS[name], golden, conversations[which])
            continue
        ours = rendered(OURS[name], golden, conversations[which])
        is_equal = ours == golden.get("expected")
        if is_equal == bool(reason(name, which)):
            yield which, "equal, though listed" if is_equal else "different, and not listed"
        if ours != golden.get("ours", ours):
            yield which, "different from what we rendered so far"


@pytest.mark.parametrize("name", GOLDENS["formats"])
def test_each_rendering_is_the_published_one_or_listed_as_another(name: str) -> None:
    assert list(odd(name, GOLDENS["formats"][name], GOLDENS["conversations"])) == []


@pytest.mark.shared
@pytest.mark.parametrize("name", OURS)
def test_the_goldens_hold_for_every_revision_of_a_template(shared: Path, name: str) -> None:
    goldens = json.loads((shared / f"goldens/chat_formats/{name}.json").read_text("utf-8"))
    same = {"glm-4-9b-chat-1m-hf": "glm-4-9b-chat-hf", "glm-4.5-first": "glm-4.5"}.get(name, name)
    for golden in goldens["renderings"]:
        which, conversation = golden["conversation"], goldens["conversations"][golden["conversation"]]
        if which not in REFUSED:
            is_equal = rendered(OURS[name], golden, conversation) == golden.get("expected")
            assert is_equal == (reason(same, which) is None), which


def test_the_sources_give_the_reason_of_each_difference() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sources.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for why, places in DIFFERENCES.items():
        (row,) = [row for row in rows if row.startswith(f"| {why} |")]
        assert [c for _, listed in places for c in listed if f"`{c}`" not in row] == []
    (refused,) = [row for row in rows if row.startswith("| Refused |")]
    assert [c for c in REFUSED if f"`{c}`" not in refused] == []


def answers_of(text: str) -> Iterator[str]:
    """The answers of a published rendering, control tokens spelled."""
    for turn in text.split("<|assistant|>")[1:]:
        yield re.split("<[|](?:user|observation|system)[|]>", turn)[0]


def test_the_calls_that_a_published_template_prints_are_read_back() -> None:
    found = 0
    for golden in GOLDENS["formats"]["glm-4.5"]["renderings"]:
        conversation = GOLDENS["conversations"][golden["conversation"]]
        turns = [turn for turn in conversation["messages"] if turn["role"] == "assistant"]
        # a text that looks like JSON and has no schema cannot be told from JSON
        if not any(turn.get("tool_calls") for turn in turns) or "expected" not in golden:
            continue
        if golden["conversation"] == "call_string_like_json" or golden["add_generation_prompt"]:
            continue
        for turn, answer in zip(turns, answers_of(golden["expected"]), strict=True):
            stream = AnswerStream(TEMPLATES["glm45"], conversation["tools"], is_spelled=True)
            pieces = [*stream.add(answer), *stream.finish()]
            calls = [
                (each.name, json.loads(each.arguments)) for each in pieces if isinstance(each, CallPiece)
            ]
            asked = [each["function"] for each in turn.get("tool_calls") or ()]
            assert calls == [(each["name"], each["arguments"]) for each in asked]
            found += len(calls)
    assert found > 10
