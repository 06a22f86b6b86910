"""A log is read as people have it: long, coloured, overwritten, in any character set, with several errors."""

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explained_logs import HEALTHY, LOGS
from fuzz import examples, fuzzed
from glmtune.charset import NotTextError
from glmtune.errors import ConfigError
from glmtune.explanations import explain, explain_error, explain_log, reading
from glmtune.explanations.table import LATER, compiled_signs, known_messages
from glmtune.language import own_language

OOM, RAGGED = LOGS["cuda-out-of-memory"], LOGS["ragged-rows"]


def names(text: str) -> list[str]:
    return [each.name for each in explain(text, "en")]


def read(content: bytes) -> list[tuple[str, int, str]]:
    found = explain_log(reading.read_log(io.BytesIO(content), "train.log"), "en")
    return [(each.name, each.line, each.text) for each in found.explained]


def test_causes_come_before_what_reports_them_wherever_they_stand() -> None:
    assert names(LOGS["child-failed"] + RAGGED) == ["ragged-rows", "child-failed"]
    assert names(LOGS["loss-nan"] + OOM + LOGS["peer-gone"]) == [
        "cuda-out-of-memory",
        "loss-nan",
        "peer-gone",
    ]


def test_of_several_causes_the_first_in_the_log_comes_first() -> None:
    assert names(OOM + LOGS["disk-full"]) == ["cuda-out-of-memory", "disk-full"]
    assert names(LOGS["disk-full"] + OOM) == ["disk-full", "cuda-out-of-memory"]


def test_a_line_is_explained_once_by_the_more_special_row() -> None:
    assert names(
        "size mismatch for base_model.x: copying a param with shape torch.Size([0]) from checkpoint"
    ) == ["empty-weights"]


def test_lines_of_the_same_kind_are_counted_and_the_first_is_shown() -> None:
    [nan] = explain(LOGS["loss-nan"], "en")
    assert (nan.line, nan.times) == (3, 2)
    assert "(and 1 more like it)" in str(nan)


def test_a_sign_of_several_lines_is_found_within_a_traceback_only() -> None:
    frame, end = (
        '  File "/m/modeling_chatglm.py", line 4',
        "ValueError: too many values to unpack (expected 2)",
    )
    assert names(f"{frame}\n{end}\n") == ["cache-layout"]
    assert names(f"{frame}\n{'x' * 2 * LATER}\n{end}\n") == []
    assert names(f"{end}\n{frame}\n") == []


def test_bars_and_colours_are_seen_through() -> None:
    text = "a\n\x1b[32mstep\x1b[0m 1%|\r 2%|\r\x1b[1;31mRuntimeError: CUDA out\x1b[0m of memory\r\nb\r\n"
    [found] = explain(text, "en")
    assert (found.name, found.line, found.text) == (
        "cuda-out-of-memory",
        2,
        "RuntimeError: CUDA out of memory",
    )


def test_an_anchored_sign_is_a_line_of_its_own() -> None:
    assert names("a\nKilled\n") == names("Killed") == names("\rKilled\r\n") == ["killed"]
    assert names("Killed the bugs\nnot Killed\n") == []


def test_a_long_line_is_cut_around_its_message() -> None:
    [found] = explain("x" * 999 + " CUDA out of memory " + "y" * 999, "en")
    assert "CUDA out of memory" in found.text
    assert len(found.text) <= 200


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_log_of_any_character_set_is_read(codec: str) -> None:
    text = "正在加载模型，请稍候。\r\n训练开始\r\n显存：RuntimeError: CUDA out of memory\r\n"
    assert read(text.encode(codec)) == [("cuda-out-of-memory", 3, "显存：RuntimeError: CUDA out of memory")]


def test_bytes_that_are_no_text_do_not_hide_a_message() -> None:
    assert read(b"\xff\xfe\xfd\x80\n\x81CUDA out of memory\n"[2:])[0][:2] == ("cuda-out-of-memory", 2)


def test_a_long_line_is_not_searched_again_from_each_of_its_parts() -> None:
    text = ": --" * 5_000 + "a.b" * 5_000 + ": command not found; Error: x\n: --x: command not found\n"
    [found] = explain(text, "en")
    assert (found.name, found.line) == ("shell-comment", 2)


def test_an_archive_is_refused_with_the_way_to_unpack_it() -> None:
    with pytest.raises(NotTextError, match="gzip") as caught:
        read(gzip.compress(b"CUDA out of memory"))
    assert "gunzip" in caught.value.hint


@given(st.integers(512, 4000), st.sampled_from(["utf-8", "utf-16"]))
@fuzzed(examples(80))
def test_the_parts_a_log_is_read_in_make_no_difference(part: int, codec: str) -> None:
    text = HEALTHY + LOGS["cache-layout"] + OOM + LOGS["loss-nan"] + LOGS["child-failed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PART", part)
        found = read(text.encode(codec))
    assert found == [(each.name, each.line, each.text) for each in explain(text, "en")]


def test_every_part_of_a_sign_stands_in_what_its_pattern_matches() -> None:
    for name, rows in compiled_signs().items():
        for sign, compiled in zip(known_messages()[name].signs, rows, strict=True):
            written = sign.strip("^$").replace("...", " this ")
            match = compiled.pattern.search(written)
            assert match, sign
            assert compiled.part in match[0]
            assert compiled.word in match[0]
            assert match[1] in written.splitlines()[-1]


def test_a_message_that_rich_has_wrapped_is_found() -> None:
    box = f"╭─ Traceback (most recent call last) ─╮\n│ /m/finetune_hf.py:530 in main        │\n╰{'─' * 38}╯\n"
    wrapped = "ValueError: Target modules {'query', 'value'} not found in\nthe base model. Please check\n"
    [found] = explain(box + wrapped, "en")
    assert (found.name, found.line) == ("target-modules", 4)
    assert found.text == wrapped.splitlines()[0]


def test_the_last_error_is_named_where_none_is_known() -> None:
    log = "ValueError: early\nINFO: no Error here\n[rank1]: odd.module.OddError: late\nthe end\n"
    found = explain_log([log], "en")
    assert (found.explained, found.num_lines) == ([], 4)
    assert found.likely
    assert (found.likely.line, found.likely.text) == (3, "[rank1]: odd.module.OddError: late")
    assert explain_log([HEALTHY], "en").likely is None
    # a line that is explained is no unknown one
    assert explain_log([LOGS["child-failed"]], "en").likely is None


def test_errors_that_led_to_an_error_are_explained_too() -> None:
    try:
        try:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        except RuntimeError as err:
            raise OSError("the model cannot be opened") from err
    except OSError as err:
        assert [each.name for each in explain_error(err, "en")] == ["cuda-out-of-memory"]
    ring = ValueError("Hypothesis is empty.")
    ring.__cause__ = ring
    assert [each.name for each in explain_error(ring, "en")] == ["empty-hypothesis"]


def test_another_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="lang: unknown 'fr'"):
        explain(OOM, "fr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("set_to", "spoken"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE", "LC_MESSAGES": "zh_TW"}, "zh"),
    ],
)
def test_the_language_is_the_systems(
    set_to: dict[str, str], spoken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert own_language() == spoken
    assert explain(OOM)[0].language == spoken


def test_a_log_file_is_not_kept_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(HEALTHY for _ in range(1500))  # some 2 MB
        file.write(OOM)
    with path.open("rb") as stream:
        parts = [len(part) for part in reading.read_log(stream, path.name)]
    assert len(parts) > 1
    assert max(parts) <= reading.PART + len(HEALTHY)
