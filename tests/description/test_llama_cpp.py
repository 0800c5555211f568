"""GGUF files that we write, in llama.cpp's own binary: its log-probabilities, greedy tokens and cuts of a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import conversion, loading
from llmcli.generation.loop import Request, generate
from llmcli.loading import Loaded
from tests.description.test_gguf import CASES
from tests.models.families import Case, prompt, range_error, write

N_TOKENS = 64
SILU = ("llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3")  # llama.cpp reads GELU from a table of float16
TEXT = "The sea, isn't it? <|endoftext|> 12 olds\n\n  were naïve"
# In a process of its own: its server on the loopback gives token ids, and the log-probabilities of all of them.
PEER = """
import json, sys, urllib.request
import xllamacpp

path, ids, text, n_tokens, n_vocabulary = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = path, 256, 1, 1
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
settings.warmup, settings.verbosity = False, -1
server = xllamacpp.Server(settings)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def ask(name, **question):
    address = f"{server.listening_address}/{name}"
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with opener.open(request) as answer:
        return json.load(answer)

cut = ask("tokenize", content=text, add_special=False, parse_special=True)["tokens"]
greedy = {"prompt": ids, "temperature": 0, "return_tokens": True, "cache_prompt": False}
tokens = ask("completion", n_predict=n_tokens, **greedy)["tokens"]
# It shows none beside part of a character. The bias that makes the token a whole one comes after what is shown.
first = ask("completion", n_predict=1, n_probs=n_vocabulary, logit_bias=[[cut[0], 1000]], **greedy)
logprobs = {row["id"]: row["logprob"] for row in first["completion_probabilities"][0]["top_logprobs"]}
json.dump({"logprobs": logprobs, "tokens": tokens, "cut": cut}, sys.stdout)
"""


def beside(path: Path, ids: list[int]) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """How far our log-probabilities after `ids` are from llama.cpp's, as a share of their range; both sides' tokens."""
    loaded = loading.load(path, dtype="float32")
    ours = tokens_and_cut(loaded, ids)
    asked = json.dumps([str(path), ids, TEXT, N_TOKENS, loaded.model.config.vocab_size])
    done = subprocess.run([sys.executable, "-c", PEER], input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    logprobs = theirs.pop("logprobs")
    expected = torch.tensor([logprobs[str(token)] for token in range(len(logprobs))])
    with torch.inference_mode():
        got = loaded.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    assert got.shape == expected.shape
    return range_error(got, expected), ours, theirs


def tokens_and_cut(loaded: Loaded, ids: list[int]) -> dict[str, Any]:
    """The greedy tokens after `ids`, up to the end of the text, and the ids of TEXT."""
    request = Request(ids=ids, max_tokens=N_TOKENS)
    events = generate(loaded.model, [request], loaded.tokenizer, context=256, device=loaded.device)
    tokens = [event.token for event in events if event.token is not None]
    return {"tokens": tokens, "cut": loaded.tokenizer.encode(TEXT)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_architecture_in_float32(tmp_path: Path, case: Case) -> None:
    write(tmp_path, case)
    conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf")
    error, ours, theirs = beside(tmp_path / "x.gguf", prompt(1, 20)[0].tolist())
    assert error < (1e-4 if case.model_type in SILU else 1e-3)
    assert ours == theirs


@pytest.mark.parametrize("number", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_every_number_format_of_the_embedded_model(tmp_path: Path, number: str) -> None:
    """Its rows are whole blocks. llama.cpp rounds what goes into a product to numbers as narrow as the weights."""
    narrow = number.startswith("int")
    wide = loading.load("default", dtype="float32" if narrow else number, pack=False)
    conversion.save_gguf(wide, tmp_path / "x.gguf", number if narrow else None)
    error, ours, theirs = beside(tmp_path / "x.gguf", wide.tokenizer.encode("Once upon a time there was a king who"))
    assert error < {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-3}.get(number, 3e-2)
    assert ours["cut"] == theirs["cut"]
    assert number != "float32" or ours == theirs
