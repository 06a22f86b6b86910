"""Regular expressions of adapters: those that people write pass, those that never end do not."""

import re
import signal
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzzed
from glmtune.adapters.patterns import PatternError, require_bounded
from odd_files import FEW, MANY

WRITTEN = [
    r"^(?!.*visual).*(?:q_proj|k_proj).*$",
    r".*\.layers\.\d+\.self_attn\.(q_proj|v_proj)",
    r"model(?!.*(visual)).*\.(q|k)_proj",
    r".*\.(query_key_value|dense|dense_h_to_4h|dense_4h_to_h)",
    r"^(?!.*(?:visual\.blocks|vision_tower)).*(?:q_proj|k_proj|v_proj|o_proj).*",
    r"^(model\.language_model(?=\.).*\.(q_proj|k_proj|v_proj|o_proj))$",
    r"^(language_model|model)(?!.*(lm_head|output|emb|wte|shared)).*",
    r"model\.layers\.([0-9]|1[0-9]|2[0-7])\.self_attn\.[qkv]_proj",
    r"^(?:base_model\.model\.)?model\.layers\.\d{1,3}\.mlp\.(?:gate|up|down)_proj$",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)"
    r"\.(?:(?:q_proj|k_proj)))",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"(?i).*Q_PROJ",
    r".*\.(?!lm_head)[^.]*$",
    r"[a-z_.]+\d+[a-z_.]+proj",
    "query_key_value",
    "",
]
ENDLESS = [
    r"(a+)+$", r"(.*)*x", r"(a|a)*b", r"(a|aa)+$", r".*.*.*.*.*x", r"(?:(?:.*.)*)*q", r"(\w+\.?)+x",
    r"([a-z]+\.)*x", r"(x+x+)+y", r"(.*?,){11}P", r"(?=(a+)+b)x", r"(.?){50}(.?){50}x", r"(?:a{0,9}){0,9}",
    r"a?" * 22 + "a" * 22, r"(.)*(.)*(.)*(.)*x", r"[\s\S]*[\s\S]*[\s\S]*[\s\S]*x", r"(?:.*\d)*x",
    r".{0,100}.{0,100}.{0,100}.{0,100}x", "".join(f"({c}|{c})" for c in "layers.self_attn.qkvproj") + "x",
    r"(?:){99999999}", r"((((){128}){128}){128}){128}", r"(?x:( a + ) +)$", r"(a)\1*", r"(?P<a>b)(?P=a)*",
]  # fmt: skip
INVALID = ["(", "*", "[", "(?P<a", "a{2,1}", "(" * 5000 + ")" * 5000, "(?(1)a|b)", "x" * 20_001, r"\q"]


@pytest.mark.parametrize("pattern", WRITTEN)
def test_what_people_write_passes(pattern: str) -> None:
    require_bounded(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_may_never_end_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"may take very long|not supported"):
        require_bounded(pattern)


@pytest.mark.parametrize("pattern", INVALID, ids=range(len(INVALID)))
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"no regular expression|characters"):
        require_bounded(pattern)


ATOMS = st.sampled_from(["a", ".", r"\d", r"\.", "[a-z]", "[^.]", "l", "e", r"\w", "$", r"\b", "_"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "*?", "{0,9}", "{3}", "{2,}"])
PARTS = st.recursive(
    st.tuples(ATOMS, REPEATS).map("".join),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, REPEATS).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map("(?!{})".format),
    ),
    max_leaves=12,
)
NAME = "model.language_model.layers.10.self_attn.query_key_value"
"""As long as names come."""


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_what_passes_ends(count: int) -> None:
    """Each match is given the time of some 10**8 steps, a hundred times what is allowed."""
    passed = refused = 0

    @fuzzed(count)
    @given(PARTS)
    def run(pattern: str) -> None:
        nonlocal passed, refused
        try:
            require_bounded(pattern)
        except PatternError:
            refused += 1
            return
        passed += 1
        signal.alarm(60)
        for end in ("", "!", "\n"):
            re.fullmatch(pattern, NAME + end)
        signal.alarm(0)

    old = signal.signal(signal.SIGALRM, _never_ends)
    try:
        run()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    print(f"passed {passed}, refused {refused}")
    assert passed > count // 4
    assert refused > count // 30


def _never_ends(_number: int, _frame: FrameType | None) -> None:
    raise AssertionError("this pattern never ends")
