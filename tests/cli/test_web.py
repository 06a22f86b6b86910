"""`glmtune web` as it is typed, and what a public page leaves out; the page itself is driven in a browser."""

import socket
from pathlib import Path

from commands import glmtune
from glmtune.web.desk import Desk
from glmtune.web.page import Site, build_page


def test_a_public_page_answers_and_shows_but_starts_and_stops_nothing(tmp_path: Path) -> None:
    desk, names = Desk(), []
    for is_public in (False, True):
        page = build_page(Site(runs=tmp_path, is_public=is_public), desk)
        assert page.config["analytics_enabled"] is False  # whoever may look: nothing is reported
        parts = page.config["components"]
        names.append({name for part in parts for name in part["props"].get("elem_classes") or ()})
    desk.close()
    own, public = names
    assert own - public >= {"gt-begin", "gt-check", "gt-upload", "gt-rows", "gt-stop-run", "gt-go-on"}
    assert public >= {"gt-question", "gt-send", "gt-stop", "gt-model", "gt-runs"}


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = glmtune("web", "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: --port {port}: " in done.stderr and "hint: something listens there" in done.stderr


def test_a_path_to_nothing_is_an_error_before_a_page_is_opened(tmp_path: Path) -> None:
    done = glmtune("web", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr
