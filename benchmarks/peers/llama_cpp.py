"""llama.cpp through llama-cpp-python, built from its source package for this CPU."""

from __future__ import annotations

import ctypes
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors")
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "PIP_NO_BINARY": "llama-cpp-python"}
VARIANTS = {
    "f32": "float32",
    "bf16": "bfloat16",
    "bf16, flash attention": "bfloat16",
    "q8_0": "int8",
    "q8_0, flash attention": "int8",
    "q4_0": "int4",
    "q4_0, flash attention": "int4",
}
SCORES = tuple(VARIANTS)
CELLS = 256  # the cache grows in steps of this many positions
NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`transformer.h.0.attn.c_attn.weight` → `blk.0.attn_qkv.weight`."""
    parts = name.removeprefix("transformer.").removeprefix("model.").split(".")
    block = f"blk.{parts[1]}." if parts[0] in ("h", "layers") else ""
    middle, leaf = ".".join(parts[2:-1] if block else parts[:-1]), parts[-1]
    return f"{block}{NAMES[middle]}.{leaf}"


def describe(file: Any, config: dict[str, Any]) -> None:
    """The sizes that llama.cpp reads, of either family."""
    llama = config["model_type"] == "llama"
    file.add_block_count(config["num_hidden_layers" if llama else "n_layer"])
    file.add_context_length(config["max_position_embeddings" if llama else "n_positions"])
    file.add_embedding_length(config["hidden_size" if llama else "n_embd"])
    file.add_feed_forward_length(config["intermediate_size"] if llama else 4 * config["n_embd"])
    file.add_head_count(config["num_attention_heads" if llama else "n_head"])
    if llama:
        file.add_head_count_kv(config["num_key_value_heads"])
        file.add_rope_dimension_count(config["head_dim"])
        file.add_rope_freq_base(config["rope_theta"])
        file.add_vocab_size(config["vocab_size"])
        file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        file.add_layer_norm_eps(config["layer_norm_epsilon"])


def stored(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    """A tensor as llama.cpp wants it: matrices (out, in), pairs of rotated rows beside each other."""
    if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = tensor.reshape(-1, 2, config["head_dim"] // 2, tensor.shape[-1])
        tensor = heads.swapaxes(1, 2).reshape(tensor.shape)
    return tensor.copy()


def convert(models: Path, target: Path) -> None:
    """GGUF of the float32 checkpoint, and llama.cpp's own quantisation of it."""
    import gguf
    import llama_cpp
    from safetensors.numpy import load_file

    config = json.loads((models / "float32" / "config.json").read_text())
    vocabulary = json.loads((models / "float32" / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    tokens += [f"<unused {index}>" for index in range(len(tokens), config["vocab_size"])]
    file = gguf.GGUFWriter(target / "f32.gguf", config["model_type"])
    describe(file, config)
    file.add_file_type(llama_cpp.LLAMA_FTYPE_ALL_F32)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(tokens)
    file.add_token_types([1] * len(tokens))
    file.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in vocabulary["merges"]])
    file.add_bos_token_id(config["bos_token_id"])
    file.add_eos_token_id(config["eos_token_id"])
    for name, tensor in load_file(models / "float32" / "model.safetensors").items():
        if name != "lm_head.weight" or not config["tie_word_embeddings"]:
            file.add_tensor(gguf_name(name), stored(name, tensor, config))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    for name in ("bf16", "q8_0", "q4_0"):
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
        paths = (str(target / f"{kind}.gguf").encode() for kind in ("f32", name))
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)):
            raise RuntimeError(f"llama_model_quantize to {name} failed")


class Engine:
    """A model, and a context for as many sequences as the last call had."""

    def load(self, models: Path, variant: str, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        kind, _, flash = variant.partition(", ")
        self.flash, self.threads, self.context, self.shape = bool(flash), threads, None, (0, 0)
        path = models / "llama_cpp" / f"{kind}.gguf"
        self.model = self.api.llama_model_load_from_file(str(path).encode(), self.api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path} could not be loaded")
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        self._reserve(len(prompts), len(prompts[0]) + n)
        times: list[float] = []
        written: list[list[int]] = [[] for _ in prompts]
        rows, position = prompts, 0
        for _ in range(n):
            for row, token in zip(written, self._step(rows, position), strict=True):
                row.append(token)
            times.append(time.perf_counter())
            position += len(rows[0])
            rows = [row[-1:] for row in written]
        return times, written

    def _reserve(self, batch: int, length: int) -> None:
        api, cells = self.api, -(-length // CELLS) * CELLS
        if self.context is None or self.shape[0] != batch or self.shape[1] < cells:
            if self.context is not None:
                api.llama_free(self.context)
            settings = api.llama_context_default_params()
            settings.n_ctx, settings.n_seq_max, settings.kv_unified = batch * cells, batch, False
            settings.n_batch = max(2048, batch * cells)
            settings.n_threads = settings.n_threads_batch = self.threads
            settings.flash_attn_type = int(self.flash)
            self.context, self.shape = api.llama_init_from_model(self.model, settings), (batch, cells)
            if not self.context:
                raise RuntimeError("llama_init_from_model failed")
        api.llama_memory_clear(api.llama_get_memory(self.context), False)

    def score(self, rows: list[list[int]]) -> float:
        """What llama-perplexity does: all rows in one batch, then the threads go over the logits."""
        import numpy as np

        width = len(rows[0])
        self._reserve(len(rows), width)
        self._decode(rows, 0, range(len(rows) * width))
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (len(rows) * width, self.vocab_size))

        def nats(row: int) -> float:
            total = 0.0
            for place, token in enumerate(rows[row][1:], row * width):
                highest = logits[place].max()
                total += float(np.log(np.exp(logits[place] - highest).sum()) + highest - logits[place, token])
            return total

        with ThreadPoolExecutor(self.threads) as pool:
            return sum(pool.map(nats, range(len(rows))))

    def _step(self, rows: list[list[int]], position: int) -> list[int]:
        """Read the same number of tokens in every row → the likeliest next one of each."""
        import numpy as np

        width = len(rows[0])
        ends = range(width - 1, len(rows) * width, width)
        self._decode(rows, position, ends)
        logits = (self.api.llama_get_logits_ith(self.context, end) for end in ends)
        return [int(np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()) for row in logits]

    def _decode(self, rows: list[list[int]], position: int, wanted: range) -> None:
        """Read the same number of tokens in every row; logits of those wanted, counted over all rows."""
        count, width = sum(map(len, rows)), len(rows[0])
        batch = self.api.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                row, column = divmod(index, width)
                batch.token[index] = rows[row][column]
                batch.pos[index] = position + column
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = row
                batch.logits[index] = index in wanted
            if status := self.api.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode failed with {status}")
        finally:
            self.api.llama_batch_free(batch)
