"""The guide of the generations: the claims about ChatGLM2 beside the figures that they rest on."""

import json
import re
from pathlib import Path

import pytest

from test_docs import both

PAGES = both("generations")
RISE = re.compile(
    r"^\| (?P<name>[\w-]+) \+(?P<claim>\d+) % \| README\D+(?P<before>[\d.]+)\D+(?P<base>[\d.]+)\D+"
    r"(?P<chat>[\d.]+).*?\| (?P<known>.*) \|$",
    re.MULTILINE,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_claimed_rise_is_told_of_base_and_chat(page: Path) -> None:
    rows = list(RISE.finditer(page.read_text("utf-8")))
    assert [row["name"] for row in rows] == ["MMLU", "C-Eval", "GSM8K", "BBH"]
    for row in rows:
        rises = [100 * (float(row[of]) / float(row["before"]) - 1) for of in ("base", "chat")]
        said = [float(each) for each in re.findall(r"\+(\d+) %", row["known"])]
        is_claimed = [abs(rise - float(row["claim"])) < 1 for rise in rises]
        assert any(is_claimed) == (row["name"] != "MMLU")
        left = [rise for rise, is_it in zip(rises, is_claimed, strict=True) if not is_it]
        assert said == [round(rise) for rise in left]


def test_the_claimed_speed_is_the_quotient_of_the_published_ones() -> None:
    assert round(100 * (44.62 / 31.49 - 1)) == 42
    for page in PAGES:
        assert "44.62 / 31.49" in page.read_text("utf-8")


@pytest.mark.shared
def test_the_published_config_has_the_context_of_the_claim(shared: Path) -> None:
    for family, key, length in (("v2", "seq_length", "32,768"), ("v1_late", "max_sequence_length", "2048")):
        config = json.loads((shared / "goldens" / "param_counts" / f"{family}.json").read_text())["config"]
        assert config[key] == int(length.replace(",", ""))
        for page in PAGES:
            assert length in page.read_text("utf-8")
