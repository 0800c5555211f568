"""The tokenizer of a GGUF file: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama"), with its special tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from llmcli.checkpoints import gguf
from llmcli.description.gguf_model import architecture
from llmcli.errors import ModelError
from llmcli.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types
LONGEST = 256  # characters of a token that is made of others; a longer one would cost its square
BLOCK = "\u2581"  # SentencePiece's space

# The patterns by which texts are cut into words before BPE (llama.cpp's src/llama-vocab.cpp), under its names for them.
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PATTERNS = {
    "llama-bpe": WORDS + r"\p{N}{1,3}" + TAIL,
    "qwen2": WORDS + r"\p{N}" + TAIL,
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "phi-2": "gpt-2", "olmo": "gpt-2"}
# What files without a name, which are old, mean by it.
UNNAMED = {"gpt2": "gpt-2", "gptneox": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2", "bloom": "bloom"}


def words(name: str) -> pre_tokenizers.PreTokenizer | None:
    """How a text is cut into words, None for a name that is not known."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in PATTERNS:
        return None
    cut = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizer(file: gguf.File) -> Tokenizer:
    """The tokenizer inside a file. Raises ModelError for a kind or a way of cutting words that is not known."""
    kind = file.get(f"{PREFIX}model", str, "none")
    if kind not in KINDS:
        raise ModelError(f"{file.path}: a tokenizer of the kind {kind!r}; expected {' or '.join(KINDS)}")
    tokens, types = file.items(f"{PREFIX}tokens", str), file.items(f"{PREFIX}token_type", int)
    if types and len(types) != len(tokens):
        raise ModelError(f"{file.path}: {len(tokens)} tokens with {len(types)} types; expected as many")
    while types and types[-1] == UNUSED:  # the padding of the embedding
        types.pop()
        tokens.pop()
    types = types or [NORMAL] * len(tokens)
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocabulary) != len(tokens) or not tokens:
        raise ModelError(
            f"{file.path}: expected distinct tokens, got {len(vocabulary)} different ones of {len(tokens)}"
        )
    try:
        backend = KINDS[kind](file, vocabulary, types)
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{file.path}: no readable tokenizer inside ({str(error).splitlines()[0]})") from None
    others = [(token, type) for token, type in zip(tokens, types, strict=True) if type != NORMAL]
    for special in (True, False):
        wanted = (CONTROL, UNKNOWN) if special else (USER_DEFINED,)
        added = [AddedToken(token, special=special, normalized=False) for token, type in others if type in wanted]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    _surround(file, backend, tokens, kind)
    eos = special_token(file, "eos", tokens)
    return Tokenizer(backend, eos_id=None if eos is None else vocabulary[eos])


def settings(file: gguf.File) -> dict[str, Any]:
    """The keys of a tokenizer_config.json: special tokens, and the chat template if there is one."""
    tokens = file.items(f"{PREFIX}tokens", str)
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos"):
        token = special_token(file, name, tokens)
        found |= {} if token is None else {f"{name}_token": token}
    if f"{PREFIX[:10]}chat_template" in file.metadata:
        found["chat_template"] = file.get(f"{PREFIX[:10]}chat_template", str)
    return found


def special_token(file: gguf.File, name: str, tokens: list[str]) -> str | None:
    """The token that the file names as "bos" or "eos", None where it names none."""
    key = f"{PREFIX}{name}_token_id"
    if key not in file.metadata:
        return None
    number = file.get(key, int)
    if not 0 <= number < len(tokens):
        raise ModelError(f"{file.path}: {key} = {number}; expected one of {len(tokens)} tokens")
    token: str = tokens[number]
    return token


def _byte_level(file: gguf.File, vocabulary: dict[str, int], types: list[int]) -> Backend:
    name = architecture(file)[0]
    named = file.get(f"{PREFIX}pre", str, "default")
    pre = SAME.get(named, named) if named != "default" else UNNAMED.get(name, named)
    cut = words(pre)
    if cut is None:
        expected = ", ".join(sorted(["gpt-2", "smollm", *PATTERNS, *SAME]))
        raise ModelError(f"{file.path}: {PREFIX}pre = {named!r} is not supported; expected one of: {expected}")
    merges = [tuple(merge.split(" ", 1)) for merge in file.items(f"{PREFIX}merges", str)]
    # Llama 3 takes a word that is a token as it is.
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: gguf.File, vocabulary: dict[str, int], types: list[int]) -> Backend:
    scores = file.items(f"{PREFIX}scores", float)
    if len(scores) != len(vocabulary):
        scores = scores[: len(vocabulary)] if len(scores) > len(vocabulary) else [0.0] * len(vocabulary)
    unknown = next((token for token, type in zip(vocabulary, types, strict=True) if type == UNKNOWN), None)
    merges = _merges(vocabulary, types, scores)
    backend = Backend(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", BLOCK)]
    ends: list[decoders.Decoder] = [decoders.Replace(BLOCK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.get(f"{PREFIX}add_space_prefix", bool, True):
        spaces.insert(0, normalizers.Prepend(BLOCK))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(ends)
    return backend


def _merges(vocabulary: dict[str, int], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first: what SentencePiece's scores say as merges."""
    found = []
    for (token, number), type, score in zip(vocabulary.items(), types, scores, strict=True):
        if type in (NORMAL, USER_DEFINED) and score == score and len(token) <= LONGEST:
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in vocabulary and right in vocabulary:
                    found.append((-score, number, vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _surround(file: gguf.File, backend: Backend, tokens: list[str], kind: str) -> None:
    """The tokens that the file wants before and after a text."""
    pre = file.get(f"{PREFIX}pre", str, "default")
    opens = kind == "llama" or SAME.get(pre, pre) == "llama-bpe"
    around = []
    for name, default in (("bos", opens), ("eos", False)):
        token = special_token(file, name, tokens)
        around.append([token] if token and file.get(f"{PREFIX}add_{name}_token", bool, default) else [])
    before, after = around
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, backend.token_to_id(token)) for token in {*before, *after}],
        )


KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
