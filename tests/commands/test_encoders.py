"""`fill-mask`, `embed` and classification on tiny encoders, beside transformers; and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Result
from tests.models.families import Case, write

TEXTS = ["the old [MASK] lay still", "[MASK]", "the [MASK] looked at the sea and at the [MASK]"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("bert")
    return directory, write(directory, Case("bert"))


def ids_of(directory: Path, text: str) -> torch.Tensor:
    from tokenizers import Tokenizer

    return torch.tensor([Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids])


def test_fill_mask_in_a_shell(bert: tuple[Path, Any], shell: Callable[..., Result]) -> None:
    done = shell(f"echo '{TEXTS[0]}' | llmcli fill-mask -m {bert[0]} -k 3")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert len(rows) == 3
    assert float(rows[0][1]) >= float(rows[1][1]) >= float(rows[2][1]) > 0
    assert done.out.startswith(f"{rows[0][0]}\t")


@torch.inference_mode()
def test_scores_agree_with_transformers(bert: tuple[Path, Any], invoke: Callable[..., Result]) -> None:
    directory, peer = bert
    text = "the old man looked at the sea"
    stdin = f"{text}\nthe sea\n".encode()
    done = invoke(f"fill-mask -m {directory} --score --format jsonl", stdin=stdin)
    assert done.code == 0, done.err
    assert invoke(f"fill-mask -m {directory} --score --format jsonl --batch-size 1", stdin=stdin) == done
    first, _ = (json.loads(line) for line in done.out.splitlines())
    ids = ids_of(directory, text)
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    assert [token["token_id"] for token in first["tokens"]] == ids[0, 1:-1].tolist()
    for place, token in enumerate(first["tokens"], 1):
        masked = ids.clone()
        masked[0, place] = 4
        expected = peer(masked).logits[0, place, :size].log_softmax(-1)[ids[0, place]]
        assert token["logprob"] == pytest.approx(float(expected), abs=2e-3)
    lines = invoke(f"fill-mask -m {directory} --score '{text}'").out
    assert lines == f"{first['logprob']:.4f}\t{text}\n"


@torch.inference_mode()
def test_fill_mask_agrees_with_transformers(
    bert: tuple[Path, Any], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    directory, peer = bert
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    stdin = (tmp_path / "in.txt").read_bytes()
    done = invoke(f"fill-mask -m {directory} -k 4 --format jsonl", stdin=stdin)
    assert done.code == 0, done.err
    assert invoke(f"fill-mask -m {directory} -k 4 --format jsonl --batch-size 1", stdin=stdin) == done
    swapped = stdin.replace(b"[MASK]", b"<mask>")
    results = [json.loads(line) for line in done.out.splitlines()]
    other = [
        json.loads(line)
        for line in invoke(f"fill-mask -m {directory} -k 4 --format jsonl", stdin=swapped).out.splitlines()
    ]
    assert [one["masks"] for one in other] == [one["masks"] for one in results]
    for text, result in zip(TEXTS, results, strict=True):
        ids = ids_of(directory, text)
        size = 200  # the tokenizer may have fewer entries than the model
        places = (ids[0] == 4).nonzero().flatten().tolist()
        assert [mask["position"] for mask in result["masks"]] == places
        for place, mask in zip(places, result["masks"], strict=True):
            got = torch.tensor([one["token_id"] for one in mask["candidates"]])
            logits = peer(ids).logits[0, place, :size]
            assert logits[got[0]] >= logits[got[1]] >= logits[got[2]]
            ratio = torch.tensor([one["p"] for one in mask["candidates"]]).log()
            torch.testing.assert_close(ratio - ratio[0], logits[got] - logits[got[0]], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embed_agrees_with_transformers(bert: tuple[Path, Any], invoke: Callable[..., Result], pooling: str) -> None:
    directory, peer = bert
    texts = ["the old ship", "sea", "the captain looked at the sea"]
    stdin = "".join(f"{text}\n" for text in texts).encode()
    done = invoke(f"embed -m {directory} --pooling {pooling}", stdin=stdin)
    assert done.code == 0, done.err
    vectors = torch.tensor([[float(number) for number in line.split()] for line in done.out.splitlines()])
    for vector, text in zip(vectors, texts, strict=True):
        hidden = peer.bert(ids_of(directory, text)).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(0) if pooling == "mean" else hidden[0], atol=1e-4, rtol=1e-3)
    document = json.loads(invoke(f"embed -m {directory} --pooling {pooling} --normalize --json", stdin=stdin).out)
    unit = torch.tensor([result["embedding"] for result in document["results"]])
    torch.testing.assert_close(unit, torch.nn.functional.normalize(vectors), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_classifier_learns_and_is_read_by_transformers(
    family: str, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    import transformers

    write(tmp_path, Case(family, {"initializer_range": 0.1}))
    lines = [{"text": f"{word} {n}", "label": word} for n in range(6) for word in ("sea", "ship")]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = "--data labelled.jsonl --val labelled.jsonl --iters 25 --batch-size 6 --lr 0.003 -q --json"
    done = invoke(f"finetune -m . --task classify --output out {flags}")
    assert done.code == 0, done.err
    assert json.loads(done.out)["val_accuracy"] == 1
    done = invoke("classify -m out --format jsonl", stdin=b"ship 3\nsea 5\n")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [one["label"] for one in answers] == ["ship", "sea"]
    peer, report = transformers.AutoModelForSequenceClassification.from_pretrained("out", output_loading_info=True)
    assert not report["missing_keys"]
    with torch.inference_mode():
        p = peer.eval()(ids_of(tmp_path, "ship 3")).logits.softmax(-1)[0]
    assert p.tolist() == pytest.approx([answers[0]["probabilities"][label] for label in ("sea", "ship")], abs=1e-4)
    done = invoke(f"finetune -m . --task classify --output adapted --lora 2 {flags.replace('25', '2')}")
    assert done.code == 0, done.err
    assert load_file("adapted/model.safetensors").keys() == load_file("out/model.safetensors").keys()


@pytest.mark.parametrize(
    ("command", "stdin", "code", "words"),
    [
        ("fill-mask -m {bert} 'no mask'", b"", 2, "expected a text with [MASK], got 'no mask'"),
        ("fill-mask -m {bert}", b"sea [MASK]" * 80, 2, "this model reads 130"),
        ("fill-mask -m {bert} --score ''", b"", 2, "a text with at least one token"),
        ("fill-mask -m {bert} --score", b"sea " * 200, 2, "this model reads 130"),
        ("fill-mask -m {gpt2} '[MASK]'", b"", 5, "kind decoder, expected encoder: use 'llmcli generate'"),
        ("generate -m {bert} x", b"", 5, "kind encoder, expected decoder or encoder-decoder: use 'llmcli fill-mask'"),
        ("finetune -m {bert} --data - --output out", b"x", 5, "kind encoder"),
        ("embed -m {bert} missing.txt", b"", 5, "missing.txt"),
    ],
)
def test_refuses(
    bert: tuple[Path, Any],
    tiny_gpt2: Path,
    invoke: Callable[..., Result],
    command: str,
    stdin: bytes,
    code: int,
    words: str,
) -> None:
    done = invoke(command.format(bert=bert[0], gpt2=tiny_gpt2), stdin=stdin)
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.err


def test_embed_cuts_what_is_too_long(bert: tuple[Path, Any], invoke: Callable[..., Result]) -> None:
    done = invoke(f"embed -m {bert[0]}", stdin=b"sea " * 200)
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert "1 texts lost their end: this model reads 130 tokens" in done.err
