"""UTF-8 first, a byte-order mark decides, and what is no text is named by its first bytes, with its cure."""

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.charset import Decoded, NotTextError, decode_given, decode_text, find_codec
from glmtune.data.reader import read_dataset
from glmtune.errors import ConfigError, DataError
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data

TEXT = '{"prompt": "一周有几天？", "response": "早上好，七天。"}\n'
TRADITIONAL = "這家酒店很好，房間乾淨，服務員熱情。早餐難吃。"
MARKED = ("utf-8-sig", "utf-16", "utf-32")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def marked(text: str, codec: str) -> bytes:
    """With the mark in front, whichever order of bytes the codec has."""
    return f"\ufeff{text}".encode(codec)


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("charset", [None, "utf-8", "auto", "gb18030", "utf-16-be"])
def test_a_byte_order_mark_decides_whatever_the_settings_say(codec, charset):
    assert decode_given(marked(TEXT, codec), "x", charset).text == TEXT


@given(st.text("一周有几天？早上好a1,\n", min_size=1), st.sampled_from(["gb18030", "big5", "utf-16-le"]))
def test_text_in_the_named_set_is_read_back_or_refused_as_utf8(text, codec):
    text = text.replace("几", "天").replace("周", "天")  # not in Big5
    content = text.encode(codec)
    try:
        assert decode_given(content, "x", codec).text == text
    except NotTextError as err:
        assert "is UTF-8" in str(err)
        assert content.decode("utf-8")


@pytest.mark.parametrize(
    ("text", "codec", "found"),
    [
        (TEXT, "gbk", "gb18030"),
        (TRADITIONAL, "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5"),
        ("一週間は何日？七日です。", "shift_jis", "shift_jis"),
        (TEXT, "utf-16-le", "utf-16-le"),
        (TEXT, "utf-16-be", "utf-16-be"),
        (TEXT, "utf-8", "utf-8"),
        ("plain", "ascii", "utf-8"),
    ],
)
def test_auto_tells_the_set_and_the_hint_without_it_names_the_setting(text, codec, found):
    content = text.encode(codec)
    assert decode_given(content, "x", "auto") == Decoded(text, found)
    if found == "utf-8":
        return
    with pytest.raises(NotTextError) as caught:
        decode_given(content, "x", "utf-8")
    assert caught.value.hint == f"data.charset={found} reads it as that"
    assert decode_given(content, "x", found).text == text


@pytest.mark.parametrize(
    "content",
    [
        "café déjà vu".encode("latin-1"),
        "сколько дней в неделе".encode("cp1251"),
        "it’s “fine”".encode("cp1252"),
        "한국어 질문입니다".encode("euc_kr"),  # reads as frequent Chinese too: nothing is guessed
        b"\xff\xfa\x80",
        bytes(range(128, 256)),
    ],
)
def test_a_set_that_is_not_told_beyond_doubt_is_asked_for(content):
    for charset in ("utf-8", "auto"):
        with pytest.raises(NotTextError, match="is not UTF-8") as caught:
            decode_given(content, "x", charset)
        assert "name its character set, such as data.charset=" in caught.value.hint


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "utf_8_sig", "u8"])
def test_utf8_is_named_in_any_spelling(charset):
    assert decode_given(TEXT.encode(), "x", charset) == Decoded(TEXT, "utf-8")


def test_utf8_is_not_read_as_the_set_that_the_settings_name():
    with pytest.raises(NotTextError, match=r"is UTF-8, which data\.charset=gbk would misread") as caught:
        decode_given(TEXT.encode(), "x", "gbk")
    assert caught.value.hint == "data.charset=auto takes each file as it is"
    assert decode_given(TEXT.encode(), "x", "auto").text == TEXT


def test_bytes_that_the_named_set_has_not_are_named_with_their_line():
    with pytest.raises(NotTextError, match=r"byte 4 of the file \(0xff\) is not BIG5") as caught:
        decode_given(b"a\nb\xff", "x", "big5")
    assert caught.value.line == 2


@pytest.mark.parametrize(
    "name", ["", "hex", "rot13", "idna", "unicode-escape", "nope", "a\0b", "../x", "mbcs", "x" * 999]
)
def test_a_codec_that_no_text_is_written_in_is_no_character_set(name):
    assert find_codec(name) is None
    with pytest.raises(ConfigError, match=r"data\.charset: unknown character set") as caught:
        load_recipe({"model": "m"}, [f"data.charset={name}"])
    assert "gb18030" in caught.value.hint


@pytest.mark.parametrize("name", ["gbk", "auto", "utf-16", "cp936"])
def test_a_character_set_given_as_the_encoding_is_told_its_setting(name):
    with pytest.raises(ConfigError, match=r"data\.encoding: .* is a character set") as caught:
        load_recipe({"model": "m"}, [f"data.encoding={name}"])
    word = caught.value.hint.rpartition(" ")[2]
    assert load_recipe({"model": "m"}, [word]).data.charset == name


# What is no text


@pytest.mark.parametrize(
    ("content", "kind", "cure"),
    [
        (b"PK\x03\x04\x14\x00..xl/workbook.xml", "an Excel sheet", "CSV (UTF-8)"),
        (b"PK\x03\x04\x14\x00..word/document.xml", "a Word document", "copy its questions"),
        (b"PK\x03\x04\x14\x00", "a zip archive", "unpack it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "CSV (UTF-8)"),
        (b"\x1f\x8b\x08", "a gzip archive", "gunzip -c a.csv > a.unpacked.csv"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
        (b"PAR1\x15\x04", "a parquet file", ".parquet"),
        (b"%PDF-1.7", "a PDF document", "copy its questions"),
        (b"\x80\x04\x95\0\0\0", "a Python pickle", "json.dumps"),
        (b"a.json".ljust(257, b"\0") + b"ustar\x00", "a tar archive", "unpack it"),
        (b"\x01\0\0\0\0ab\0\0", "no text: it holds zero bytes", "Fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_text_is_named_by_its_first_bytes(content, kind, cure):
    readers = [decode_text, decode_given, lambda *words: decode_given(*words, "auto")]
    for read in readers:
        with pytest.raises(NotTextError) as caught:
            read(content, "a.csv")
        assert f"the file is {kind}" in str(caught.value)
        assert str(caught.value).startswith("begins with the bytes ")
        assert cure in caught.value.hint


@pytest.mark.parametrize("name", ["my rows.jsonl.gz", "rows.jsonl"])
def test_the_command_that_unpacks_a_file_makes_rows_of_it(name):
    if shutil.which("gunzip") is None:
        pytest.skip("needs gunzip")
    Path(name).write_bytes(gzip.compress(TEXT.encode()))
    with pytest.raises(DataError) as caught:
        read_dataset(Path(name), Data())
    subprocess.run(caught.value.hint.removeprefix("unpack it: "), shell=True, check=True)
    (other,) = (path for path in Path().iterdir() if path.name != name)
    assert len(read_dataset(other, Data()).examples) == 1


# Files of a model or a run, and recipes: no setting says what they are


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "big5"])
def test_the_command_of_the_hint_makes_text_of_the_file(codec, tmp_path):
    if shutil.which("iconv") is None:
        pytest.skip("needs iconv")
    text = '{"prompt": "早上好", "response": "早安，你好嗎？"}\n'
    (tmp_path / "my rows.json").write_bytes(text.encode(codec))
    with pytest.raises(NotTextError) as caught:
        decode_text((tmp_path / "my rows.json").read_bytes(), "my rows.json")
    subprocess.run(caught.value.hint.removeprefix("convert it: "), shell=True, check=True)
    assert decode_text((tmp_path / "my rows.utf8.json").read_bytes(), "x") == text


@pytest.mark.parametrize("codec", MARKED)
def test_a_recipe_with_a_byte_order_mark_is_read(codec):
    Path("r.yaml").write_bytes("model: 早\n".encode(codec))
    assert load_recipe("r.yaml").model == "早"


def test_a_recipe_in_another_set_is_converted_as_the_hint_says():
    Path("r.yaml").write_bytes("model: 早上好\n".encode("gbk"))
    with pytest.raises(ConfigError, match=r"r\.yaml:1: byte 8") as caught:
        load_recipe("r.yaml")
    assert caught.value.hint.startswith("convert it: iconv -f GB18030 -t UTF-8 r.yaml > ")


def test_a_byte_order_mark_of_utf8_is_no_part_of_the_text():
    assert decode_text(b"\xef\xbb\xbfa", "x") == "a"
    with pytest.raises(NotTextError, match=r"byte 5 of the file \(0xff\)"):
        decode_text(b"\xef\xbb\xbfa\xff", "x")
