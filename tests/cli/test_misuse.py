"""A command line that click refuses ends as our own errors do."""

import sys

import pytest

from glmtune.cli import main

MISUSES = {
    "compare": "compare: missing argument 'RUN RUN...'",
    "info": "info: missing argument 'PATH'",
    "chat": "chat: missing argument 'PATH'",
    "evaluate": "evaluate: missing argument 'PATH'",
    "data stats": "data stats: missing argument 'FILE'",
    "compare a --at x": "compare: invalid value for '--at': 'x' is not a valid integer",
    "chat a --nosuch": "chat: no such option '--nosuch'",
    "nosuch": ": no such command 'nosuch'",
}


@pytest.mark.parametrize("words", MISUSES)
def test_a_misused_verb_says_what_is_wrong_and_where_its_examples_are(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    error, hint = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert error.startswith("error: ")
    assert error.endswith(MISUSES[words])
    assert hint.startswith("hint: `")
    assert hint.endswith(" --help` has examples")


def test_help_names_every_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", "--help"])
    main()
    shown = " ".join(capsys.readouterr().out.split())
    for family in ("ChatGLM-6B", "ChatGLM2", "ChatGLM3", "GLM-4", "GLM-4-0414", "GLM-Z1", "GLM-4.5"):
        assert f"{family}," in shown or f"{family}." in shown
