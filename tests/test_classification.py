"""Classification: figures by hand, a text's bits alone and in any batch, checkpoints that transformers reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import classification, loading
from llmcli.checkpoints import safetensors
from llmcli.data.examples import Labelled
from llmcli.errors import InputError, ModelError
from llmcli.models.gpt2 import GPT2
from llmcli.nn.classifier import Classifier
from llmcli.training import finetuning
from tests.tiny import TINY, write_tokenizer

TEXTS = ["The sea was calm", "said the boy. " * 3, "", "ship", "Where shall we go?"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random classifier of three classes."""
    folder = tmp_path_factory.mktemp("classifier")
    generator = torch.Generator().manual_seed(0)
    model = Classifier(GPT2(TINY).initialize(generator), 3).initialize_head(generator)
    safetensors.save(folder / "model.safetensors", model.checkpoint())
    write_tokenizer(folder, TINY.vocab_size)
    names = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "bad", "1": "good", "2": "so so"}}
    document = {"model_type": "gpt2", **vars(TINY), "eos_token_id": 0, **names}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def found(loaded: loading.Loaded, texts: list[str], batch_size: int) -> torch.Tensor:
    rows, _ = classification.encode(loaded.tokenizer, texts, 64)
    every = classification.probabilities(loaded.model, rows, batch_size=batch_size, device=loaded.device)
    return torch.cat(list(every))


def test_figures_by_hand() -> None:
    figures = classification.figures(["a", "b", "c"], wanted=[0, 0, 0, 1, 1], got=[0, 0, 1, 1, 2])
    assert figures.confusion == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert figures.accuracy == 3 / 5
    assert figures.classes["a"] == {"precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8), "support": 3}
    assert figures.classes["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert figures.classes["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert figures.macro["f1"] == pytest.approx(1.3 / 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(directory: Path, dtype: str) -> None:
    loaded = loading.load(directory, dtype=dtype, classifier=True)
    alone = torch.cat([found(loaded, [text], 1) for text in TEXTS])
    torch.testing.assert_close(alone.sum(-1), torch.ones(len(TEXTS)))
    assert len(alone.unique()) > 3 * len(TEXTS) - 3
    for batch_size in (2, 3, 5):
        assert torch.equal(found(loaded, TEXTS, batch_size), alone)
    assert torch.equal(found(loaded, TEXTS[::-1], 5).flip(0), alone)


def test_a_long_text_keeps_its_beginning(directory: Path) -> None:
    tokenizer = loading.load(directory, classifier=True).tokenizer
    (row, short), n_cut = classification.encode(tokenizer, [TEXTS[1], "sea"], 8)
    assert (len(row), row[-1].item(), n_cut) == (8, tokenizer.eos_id, 1)
    assert TEXTS[1].startswith(tokenizer.decode(row[:-1].tolist()))
    assert len(short) < 8


def test_transformers_reads_it(directory: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(directory).eval()
    ours = loading.load(directory, classifier=True)
    assert theirs.config.id2label == dict(enumerate(ours.labels))
    rows, _ = classification.encode(ours.tokenizer, TEXTS, 64)
    with torch.inference_mode():
        expected = torch.cat([theirs(row[None]).logits.softmax(-1) for row in rows])
    torch.testing.assert_close(found(ours, TEXTS, 5), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_is_no_language_model_and_the_other_way_round(directory: Path, tiny_gpt2: Path) -> None:
    with pytest.raises(ModelError, match="expected a language model; got a classifier of bad, good, so so"):
        loading.load(directory)
    with pytest.raises(ModelError, match=r"expected a classifier, as .* makes; got a language model"):
        loading.load(tiny_gpt2, classifier=True)


@pytest.mark.parametrize("names", [None, [], {"0": "a"}, {"0": "a", "2": "b"}, {"0": "a", "1": 2}])
def test_classes_need_names(names: Any) -> None:
    with pytest.raises(ModelError, match="expected id2label"):
        loading.class_labels({"architectures": ["GPT2ForSequenceClassification"], "id2label": names})


def test_labels_of_validation_are_labels_of_training() -> None:
    known = [Labelled("a:1", "x", "yes"), Labelled("a:2", "y", "no")]
    assert finetuning.label_names(known, known[:1]) == ["no", "yes"]
    with pytest.raises(InputError, match=r"b:7: the label 'maybe' .* expected one of: no, yes"):
        finetuning.label_names(known, [Labelled("b:7", "x", "maybe")])
    with pytest.raises(InputError, match="at least two labels, got only yes"):
        finetuning.label_names(known[:1], [])


def test_an_untrained_head_is_nearly_undecided() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Classifier(GPT2(TINY).initialize(generator), 4).initialize_head(generator)
    loss = torch.nn.functional.cross_entropy(model(torch.arange(9)[None])[0], torch.zeros(9, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(4), rel=0.15)
