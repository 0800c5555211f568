"""-m user/name[@revision] against a server that speaks the hub's protocol, by the real binary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.hub_server import Hub, serving

Shell = Callable[..., Result]
A, B = "a" * 40, "b" * 40


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def files(tiny_gpt2: Path) -> dict[str, bytes]:
    """A repository as people have them: with things beside the model that llmcli has no use for."""
    model = {path.name: path.read_bytes() for path in tiny_gpt2.iterdir()}
    beside = {"README.md": b"# Tiny", "pytorch_model.bin": b"\x80\x04.", "onnx/model.onnx": b"x"}
    advice = {"generation_config.json": b'{"repetition_penalty": 1.5}', "chat_template.jinja": b"{{ messages }}"}
    return {**model, **beside, **advice}


@pytest.fixture
def online(shell: Shell, hub: Hub, tmp_path: Path) -> Shell:
    """A shell whose hub is the server and whose cache is empty."""
    surroundings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    return lambda script, **more: shell(script, **{**surroundings, **more})


def test_a_model_is_fetched_once_and_read_in_place(
    online: Shell, hub: Hub, files: dict[str, bytes], tiny_gpt2: Path, tmp_path: Path, invoke: Shell
) -> None:
    hub.put("someone/tiny", A, files, "main")
    line = "generate 'The sea' -n 6 --repetition-penalty 1.5"
    result = online("llmcli generate -m someone/tiny 'The sea' -n 6; llmcli tokenize -m someone/tiny --count 'The sea'")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(invoke(f"{line} -m {tiny_gpt2}").out)  # the repository's own advice was fetched, too
    wanted = {*(path.name for path in tiny_gpt2.iterdir()), "generation_config.json", "chat_template.jinja"}
    assert sorted(hub.fetched()) == sorted(wanted)
    # What others fetched, by the library's own layout, needs no network and no write.
    asked, cache = len(hub.asked), tmp_path / "hf" / "hub"
    assert (cache / "models--someone--tiny" / "refs" / "main").read_text() == A
    online(f"chmod -R a-w {cache}")
    again = online(
        "llmcli tokenize -m someone/tiny --count 'The sea'; llmcli models --json", HF_ENDPOINT="http://[::1]:9"
    )
    online(f"chmod -R u+w {cache}")
    count, _, listed = again.out.partition("\n")
    assert (again.code, count) == (0, result.out.rsplit("\n", 2)[1])
    row = next(row for row in json.loads(listed)["models"] if row["name"] == "someone/tiny")
    assert (row["status"], row["kind"]) == ("ready", "cached")
    assert len(hub.asked) == asked


def test_a_revision_is_pinned(online: Shell, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.put("someone/tiny", A, files, "v1")
    hub.put("someone/tiny", B, {**files, "tokenizer.json": b"{}"}, "main")
    result = online("llmcli tokenize -m someone/tiny@v1 --count 'The sea'; llmcli tokenize -m someone/tiny@v2 x")
    assert (result.code, result.out) == (5, result.out[:2])
    assert "someone/tiny@v2 has no revision v2" in result.err
    assert result.err.count("\n") == 1
    snapshots = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == [A]
    assert all(A in path for method, path, _ in hub.asked if "/resolve/" in path)
    hub.put("someone/tiny", B, files, "v1")  # the tag moves: what is here stays
    asked = len(hub.asked)
    assert online(f"llmcli tokenize -m someone/tiny@v1 --count x; llmcli tokenize -m someone/tiny@{A} x").code == 0
    assert len(hub.asked) == asked


def test_a_connection_that_breaks_is_taken_up_again(
    online: Shell, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    piece = 10 << 20  # bytes that the library keeps at once
    weights = bytes(range(256)) * (piece // 256 + 4000)
    hub.cut_after = piece + 1000
    hub.put("someone/tiny", A, {**files, "model.safetensors": weights}, "main")
    result = online("llmcli tokenize -m someone/tiny x")
    assert result.code == 0, result.err
    assert ("GET", f"/someone/tiny/resolve/{A}/model.safetensors", f"bytes={piece}-") in hub.asked
    snapshot = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots" / A
    assert (snapshot / "model.safetensors").read_bytes() == weights


def test_weights_come_last_so_that_half_a_model_is_never_taken_for_one(
    online: Shell, hub: Hub, files: dict[str, bytes]
) -> None:
    hub.put("someone/tiny", A, {name: data for name, data in files.items() if name != "model.safetensors"}, "main")
    result = online("llmcli tokenize -m someone/tiny x")
    assert (result.code, result.out) == (5, "")
    assert "someone/tiny cannot be used: weights are missing" in result.err
    first = hub.fetched()
    hub.put("someone/tiny", B, files, "main")
    assert online("llmcli tokenize -m someone/tiny x").code == 0
    assert hub.fetched()[len(first) :] == ["model.safetensors"]  # the rest was here, under the same hashes


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((404, "RepoNotFound"), "no such repository, or a private one; check the name, or set HF_TOKEN"),
        ((401, "RepoNotFound"), "no such repository, or a private one; check the name, or set HF_TOKEN"),
        ((403, "GatedRepo"), "/someone/tiny and set HF_TOKEN"),
        ((503, ""), "503"),
        (None, "could not be fetched"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(
    online: Shell, hub: Hub, refusal: tuple[int, str] | None, said: str
) -> None:
    if refusal is not None:
        hub.refusals["someone/tiny"] = refusal
    nobody = {} if refusal is not None else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    result = online("llmcli tokenize -m someone/tiny x", **nobody)
    assert (result.code, result.out) == (5, "")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert result.err.startswith("error: someone/tiny")


def test_a_token_opens_a_private_repository_and_is_never_shown(
    online: Shell, hub: Hub, files: dict[str, bytes]
) -> None:
    hub.token = "hf_secret"
    hub.put("someone/tiny", A, files, "main")
    refused = online("llmcli tokenize -v -m someone/tiny x", HF_TOKEN="hf_no")
    assert refused.code == 5
    assert "hf_no" not in refused.out + refused.err
    assert online("llmcli tokenize -m someone/tiny x", HF_TOKEN="hf_secret").code == 0


def test_offline_nothing_is_asked(online: Shell, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.put("someone/tiny", A, files, "main")
    for script, variable in (("--offline", "0"), ("", "1")):
        result = online(f"llmcli tokenize -m someone/tiny {script} x", HF_HUB_OFFLINE=variable)
        assert (result.code, result.out) == (5, "")
        for words in ("someone/tiny is not in the cache", str(tmp_path / "hf"), "hf download someone/tiny"):
            assert words in result.err
    assert hub.asked == []
