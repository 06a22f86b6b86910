"""Models by their names on a hub: the hub's real client, and a hub of our own behind it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import COMMIT, OLDER, FakeHub, serving
from glmtune import hub
from glmtune.errors import CheckpointError, ConfigError, MissingDependencyError
from glmtune.hub import HubName, fetch, parse_name

FETCH = """
import json, sys
from glmtune.errors import GlmtuneError
from glmtune.hub import fetch, parse_name
revision = sys.argv[2] if len(sys.argv) > 2 else None
try:
    found = fetch(parse_name(sys.argv[1]), revision)
    print(json.dumps([str(found.folder), found.revision]))
except GlmtuneError as err:
    print(json.dumps([type(err).__name__, str(err), err.hint]))
assert "modelscope" in sys.modules or "torch" not in sys.modules  # that package imports it
"""
SMALL = {"config.json", "tokenizer.model", "tokenizer_config.json", "tokenization_chatglm.py"}


def repository(folder: Path, *more: str) -> Path:
    """Files as a model's repository has them."""
    for name in (*SMALL, "README.md", "onnx/config.json", "onnx/model.bin", *more):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"file": name}), encoding="utf-8")
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FakeHub]:
    both = repository(tmp_path / "both", "model.safetensors", "pytorch_model.bin")
    with serving({"A/both": both, "A/bin": repository(tmp_path / "bin", "pytorch_model.bin")}) as running:
        yield running


def start(served: FakeHub, home: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    environment = {**served.environment(home), "PYTHONIOENCODING": "utf-8", **more}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(served: FakeHub, home: Path, *words: str, **more: str) -> list[str]:
    """What a program of its own says that fetches a model."""
    process = start(served, home, *words, **more)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found: list[str] = json.loads(out)
    return found


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("THUDM/chatglm3-6b", "hf:THUDM/chatglm3-6b"),
        ("hf:THUDM/glm-4-9b-chat", "hf:THUDM/glm-4-9b-chat"),
        ("modelscope:ZhipuAI/chatglm3-6b", "modelscope:ZhipuAI/chatglm3-6b"),
        (Path("hf:THUDM/chatglm3-6b"), "hf:THUDM/chatglm3-6b"),
    ],
)
def test_a_hubs_name_is_known(path: str | Path, name: str) -> None:
    found = parse_name(path)
    assert found
    assert str(found) == name
    assert parse_name(str(found)) == found


@pytest.mark.parametrize(
    "path",
    [
        "chatglm3-6b",
        "./a/b",
        "/a/b",
        "~/a",
        "../a",
        "a/b/c",
        "a\\b",
        "a/",
        "/a",
        "模型/甲",
        "./a",
        ".a/b",
        "",
    ],
)
def test_what_looks_like_a_folder_is_no_hubs_name(path: str) -> None:
    assert parse_name(path) is None


@pytest.mark.parametrize("path", ["hf:chatglm3-6b", "hf:a/b/c", "modelscope:", "modelscope:a b/c"])
def test_a_prefix_with_something_else_behind_it_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a model on a hub"):
        parse_name(path)


# The Hugging Face Hub


def test_only_what_a_model_needs_is_fetched_and_safetensors_come_first(
    served: FakeHub, tmp_path: Path
) -> None:
    folder, revision = run(served, tmp_path / "home", "A/both", HF_TOKEN="hf_secret")
    assert revision == COMMIT
    assert {path.name for path in Path(folder).iterdir()} == SMALL | {"model.safetensors"}
    assert "Bearer hf_secret" in served.tokens
    folder, _ = run(served, tmp_path / "home", "A/bin")
    assert {path.name for path in Path(folder).iterdir()} == SMALL | {"pytorch_model.bin"}


def test_a_cached_model_needs_no_network(served: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("A/both", "A/bin"):
        first = run(served, home, name)
        count = served.fetched.total()
        assert run(served, home, name, HF_HUB_OFFLINE="1") == first
        assert run(served, home, name, HF_ENDPOINT="http://127.0.0.1:9") == first
        assert run(served, home, name, COMMIT, HF_HUB_OFFLINE="1") == first
        assert run(served, home, name) == first
        assert served.fetched.total() == count


def test_processes_that_start_together_fetch_each_file_once(served: FakeHub, tmp_path: Path) -> None:
    processes = [start(served, tmp_path / "home", "A/both") for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert COMMIT in answers.pop()
    assert set(served.fetched) == SMALL | {"model.safetensors"}
    assert set(served.fetched.values()) == {1}


@pytest.mark.parametrize(
    ("words", "more", "problem", "hint"),
    [
        (["A/both", "v9"], {}, "hf:A/both: unknown revision 'v9'", "branch, tag or commit"),
        (["A/both", OLDER], {}, f"hf:A/both: unknown revision '{OLDER}'", "branch, tag or commit"),
        (["A/none"], {}, "hf:A/none: no such repository on http://127.0.0.1", "HF_TOKEN"),
        (["A/closed"], {}, "hf:A/closed: its owner has not let you in", "HF_TOKEN"),
        (["A/both"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", "without HF_HUB_OFFLINE"),
        (
            ["A/both"],
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "http://127.0.0.1:9 cannot be reached",
            "network",
        ),
        (["A/a--b"], {}, "hf:A/a--b: ", "names are OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line_and_a_hint(
    served: FakeHub, tmp_path: Path, words: list[str], more: dict[str, str], problem: str, hint: str
) -> None:
    served.repositories["A/closed"] = served.repositories["A/both"]
    served.gated.add("A/closed")
    kind, message, advice = run(served, tmp_path / "home", *words, **more)
    assert kind in ("CheckpointError", "ConfigError")
    assert problem in message
    assert hint in advice
    assert "\n" not in message


# ModelScope: its package, where it is installed; else a stand-in that notes how it is called

STAND_IN = """
calls = []
def snapshot_download(model_id, revision=None, **options):
    calls.append((model_id, revision, options))
    if options.get("local_files_only"):
        from modelscope.hub.errors import CacheNotFound
        raise CacheNotFound("not there")
    if model_id == "A/unreachable":
        raise ConnectionError("no network")
    if model_id == "A/none":
        error = OSError("[E3020] [404] not found")
        error.__cause__ = type("NotExist", (Exception,), {"status_code": 404})()
        raise error
    return FOLDER
"""
STAND_IN_ERRORS = """
class HubError(Exception): pass
class CacheNotFound(HubError): pass
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[object, ...]]]:
    """The calls that a package in ModelScope's place was given."""
    home = tmp_path / "packages" / "modelscope"
    (home / "hub").mkdir(parents=True)
    folder = repository(tmp_path / "model", "pytorch_model.bin")
    (home / "__init__.py").write_text(f"FOLDER = {str(folder)!r}\n{STAND_IN}", encoding="utf-8")
    (home / "hub" / "__init__.py").touch()
    (home / "hub" / "errors.py").write_text(STAND_IN_ERRORS, encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(home.parent))
    fetch.cache_clear()
    import modelscope

    yield modelscope.calls
    fetch.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        del sys.modules[name]


def test_modelscopes_package_is_asked_for_the_same_files(stand_in: list[tuple[object, ...]]) -> None:
    found = fetch(HubName("modelscope", "ZhipuAI/chatglm3-6b"), "v1.0.2")
    assert (found.folder.name, found.revision) == ("model", "v1.0.2")
    asked = [[*hub.SMALL_FILES, kind] for kind in ("*.safetensors", "*.bin")]
    assert stand_in == [
        ("ZhipuAI/chatglm3-6b", "v1.0.2", {"allow_patterns": patterns, "ignore_patterns": ["*/*"]})
        for patterns in asked
    ]
    assert fetch(HubName("modelscope", "ZhipuAI/chatglm3-6b"), "v1.0.2") is found
    assert len(stand_in) == 2  # within a program, a hub is asked once


def test_without_network_modelscopes_cache_is_looked_into(stand_in: list[tuple[object, ...]]) -> None:
    with pytest.raises(CheckpointError, match="modelscope:A/unreachable: not in the cache, and ModelScope"):
        fetch(HubName("modelscope", "A/unreachable"))
    assert stand_in[-1] == ("A/unreachable", None, {"local_files_only": True})


def test_what_modelscope_does_not_have_is_said(stand_in: list[tuple[object, ...]]) -> None:
    with pytest.raises(CheckpointError, match="no such repository on ModelScope"):
        fetch(HubName("modelscope", "A/none"))
    with pytest.raises(CheckpointError, match="unknown revision 'v9'"):
        fetch(HubName("modelscope", "A/none"), "v9")


def test_without_modelscopes_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    fetch.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        fetch(HubName("modelscope", "A/b"))
    assert caught.value.hint == "pip install 'glmtune[modelscope]'"


@pytest.mark.slow
def test_modelscopes_own_package_fetches_and_caches(served: FakeHub, tmp_path: Path) -> None:
    pytest.importorskip("modelscope")
    more = {"MODELSCOPE_ENDPOINT": served.url, "MODELSCOPE_CACHE": str(tmp_path / "cache")}
    folder, revision = run(served, tmp_path, "modelscope:A/both", **more)
    assert revision == "master"
    names = {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")}
    assert names == SMALL | {"model.safetensors"}
    again = run(
        served, tmp_path, "modelscope:A/both", **{**more, "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert again == [folder, revision]
    problem = run(served, tmp_path, "modelscope:A/none", **more)
    assert problem[1] == "modelscope:A/none: no such repository on ModelScope, and no such folder here"
    assert run(served, tmp_path, "modelscope:A/both", "v9", **more)[1].endswith("unknown revision 'v9'")
