"""Events as lines."""

from pathlib import Path

import pytest

from glmtune.log import quiet, tell
from glmtune.workflows.events import Evaluated, Event, Note, Saved
from glmtune.workflows.show import Lines, Shown, attend

BEST = Path("runs/x/checkpoints/step-000002")


def said(capsys: pytest.CaptureFixture[str], *events: Event) -> list[str]:
    show = Shown(Lines())
    for event in events:
        show(event)
    return capsys.readouterr().out.splitlines()


def test_a_better_evaluation_and_its_checkpoint_are_one_line_in_the_official_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = Saved(BEST, is_best=True, difference=0.5)
    probed = "(the probe's logits differ from the base's by 0.5)"
    assert said(capsys, Evaluated(2, 8.7064, None, True), saved) == [
        f"Evaluation Loss: 8.70640 (step 2); Best model has saved at {BEST} {probed}"
    ]
    first, better = (Evaluated(2, 8.7064, None, True), saved), (Evaluated(4, 8.5, 8.7064, True), saved)
    assert said(capsys, *first, *better)[1:] == [
        "Evaluation Loss: 8.50000 (step 4); Min eval loss has been updated: 8.70640 --> 8.50000; "
        f"Best model has saved at {BEST}"
    ]


def test_an_evaluation_that_is_no_better_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, Evaluated(0, 9.0, None, False)) == ["Evaluation Loss: 9.00000 (step 0)"]
    lines = said(capsys, Evaluated(6, 9.0, 8.5, False), Saved(BEST, is_best=False, difference=0.0))
    assert lines[0] == "Evaluation Loss: 9.00000 (step 6)"
    assert lines[1].startswith(f"Model has saved at {BEST} ")
    assert lines[2].startswith("warning: nothing was learned so far")


def test_what_is_told_on_the_way_is_heard_as_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    def work():
        tell("a: opened")
        with quiet():
            tell("opened once more")
        yield Note("b")
        tell("warning: c")
        return 7

    heard: list[Event] = []
    assert attend(work(), "working", quiet=False, on_event=heard.append) == 7
    assert heard == [Note("a: opened"), Note("b"), Note("warning: c", is_warning=True)]
    assert attend(work(), "working", quiet=True, on_event=None) == 7
    assert capsys.readouterr() == ("", "")
