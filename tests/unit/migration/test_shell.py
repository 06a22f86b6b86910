"""A script's commands, as its writer meant them."""

import pytest

from glmtune.errors import ConfigError
from glmtune.migration.shell import Command, read_commands


def only(text: str) -> Command:
    [command] = read_commands(text, "x.sh")
    return command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python main.py --a 1", ["--a", "1"]),
        ("python main.py \\\n  --a 1 \\\n  --b\n", ["--a", "1", "--b"]),
        ("N=8\npython main.py --a $N-${N}x", ["--a", "8-8x"]),
        ("export N=8 M=9\npython main.py --a $N$M", ["--a", "89"]),
        ('N=${1:-"8"}\npython main.py --a ${N}', ["--a", "8"]),
        ("N='a b'\npython main.py --a \"$N\"", ["--a", "a b"]),
        ("N=8\npython main.py --a '$N'", ["--a", "$N"]),
        ("python main.py --a 类型#裙 # a comment", ["--a", "类型#裙"]),
        ('python main.py --a "x # y"', ["--a", "x # y"]),
        ("python main.py --a '' --b \"\"", ["--a", "", "--b", ""]),
        ("python main.py --a 2 > log.txt 2>&1 &", ["--a", "2"]),
        ("python main.py\\\n --a 1\r\n", ["--a", "1"]),
        ("P=$(shuf -n 1 -i 10-65)\npython main.py --p $P", ["--p", "$(shuf_-n_1_-i_10-65)"]),
    ],
)
def test_words_are_the_shells(text: str, words: list[str]) -> None:
    assert only(text).words == ["python", "main.py", *words]


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        ("--a 1 \\  # the rate", "line 2: a comment after the backslash"),
        ("--a 1 \\ # the rate", "line 2: a comment after the backslash"),
        ("--a 1 # the rate \\", "line 2: a comment before the backslash"),
        ("--a 1 \\  ", "line 2: a blank after the backslash"),
        ("--a 1 \\\n  # --c 3 \\", "line 3: a comment among the lines"),
    ],
)
def test_a_command_that_the_shell_would_end_too_early_is_read_on_and_said(middle: str, said: str) -> None:
    found = only(f"python main.py \\\n  {middle}\n  --b 2\n")
    assert found.words == ["python", "main.py", "--a", "1", "--b", "2"]
    assert [text[: len(said)] for text in found.mended] == [said]


def test_a_good_command_has_nothing_mended() -> None:
    assert not only("# about\npython main.py \\\n  --a 1  # the last\n").mended


def test_what_is_set_for_a_command_alone_is_not_set_after_it() -> None:
    first, second = read_commands("D=1 python a.py\npython b.py $D", "x.sh")
    assert (first.environment, second.environment) == ({"D": "1"}, {})
    assert (second.words[-1], second.unset) == ("$D", {"D"})


def test_commands_of_one_line_are_told_apart() -> None:
    assert [c.words for c in read_commands("cd x && python a.py; echo done | cat", "x.sh")] == [
        ["cd", "x"], ["python", "a.py"], ["echo", "done"], ["cat"],
    ]  # fmt: skip


def test_an_open_quote_is_an_error_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"x.sh:2: no closing quotation"):
        read_commands("N=1\npython 'main.py", "x.sh")
