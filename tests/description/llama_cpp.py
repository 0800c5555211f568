"""Models of every architecture as GGUF files, and their greedy tokens beside llama.cpp's own.

python -m tests.description.llama_cpp PYTHON    # an interpreter that has llama-cpp-python; exit 1 where tokens differ
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from llmcli import conversion, loading
from llmcli.generation.loop import Request, generate
from llmcli.loading import Loaded
from tests.description.test_gguf import CASES
from tests.models.families import prompt, write

N_TOKENS = 64
TEXT = "The sea, isn't it? <|endoftext|> 12 olds\n\n  were naïve"

PEER = """
import json, sys
from llama_cpp import Llama
found = []
for path, ids, text, n in json.load(sys.stdin):
    model = Llama(path, n_ctx=256, n_threads=1, verbose=False)
    tokens = model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
    found.append([model.tokenize(text.encode(), add_bos=False, special=True), [next(tokens) for _ in range(n)]])
json.dump(found, sys.stdout)
"""


def main(python: str) -> int:
    """Print a line for each model and number format; 1 unless F32 has the same tokens throughout."""
    ids, rows = prompt(1, 20)[0].tolist(), []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            directory = Path(folder) / str(len(rows))
            directory.mkdir()
            write(directory, case)
            rows.append((str(case), *one(loading.load(directory, pack=False), directory / "x.gguf", ids, None)))
        wide = loading.load("default", dtype="float32", pack=False)  # whose rows are whole blocks
        for kind in (None, "int8", "int4"):
            path = Path(folder) / f"{kind}.gguf"
            rows.append((f"default {kind or 'float32'}", *one(wide, path, ids, kind)))
        asked = json.dumps([(path, ids, TEXT, len(tokens)) for _, path, tokens, _ in rows])
        answer = subprocess.run([python, "-c", PEER], input=asked, capture_output=True, text=True, check=True).stdout
    failed = False
    for (name, _, tokens, cut), (their_cut, theirs) in zip(rows, json.loads(answer), strict=True):
        pairs = enumerate(zip(tokens, theirs, strict=True))
        same = next((n for n, (ours, other) in pairs if ours != other), len(tokens))
        print(f"{same} of {len(tokens)} tokens, text cut {'alike' if cut == their_cut else 'otherwise'}: {name}")
        failed |= cut != their_cut or (same < len(tokens) and "int" not in name)
    return int(failed)


def one(model: Loaded, path: Path, ids: list[int], kind: str | None) -> tuple[str, list[int], list[int]]:
    """Write a model as a GGUF file → its path, the greedy tokens of that file after `ids`, and the ids of TEXT."""
    conversion.save_gguf(model, path, kind)
    loaded = loading.load(path, dtype="float32")
    request = Request(ids=ids, max_tokens=N_TOKENS)
    events = generate(loaded.model, [request], loaded.tokenizer, context=256, device=loaded.device)
    return str(path), [event.token for event in events if event.token is not None], loaded.tokenizer.encode(TEXT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
