"""llama.cpp as a peer: our model's weights as q8_0 in a GGUF file, answered by llama-cpp-python.

llama.cpp knows this architecture as `chatglm`: a fused query_key_value with bias, and one `ffn_up` of twice
the width that SwiGLU halves. The file's vocabulary only numbers its tokens: ids go in, and `llama-server`
spells its answers by it. llama.cpp runs with its own defaults (memory mapped, flash attention where it likes
it), and by its C functions, so that no Python of llama-cpp-python's counts. Only its AMX kernels are left
out: built by gcc 12 they stop the process with an illegal instruction
(github.com/ggml-org/llama.cpp/pull/26954).
Source: github.com/ggml-org/llama.cpp, src/models/chatglm.cpp, src/llama-vocab.cpp, conversion/chatglm.py;
github.com/ggml-org/llama.cpp/tree/master/gguf-py.

    pip install -c constraints.txt -e '.[bench]'     # builds llama.cpp: a C++ compiler, some minutes
"""

import ctypes
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Answers, Asked
from glmtune.processor import cpu_has

CONTEXT_TOKENS = 512
HINT = "not installed: pip install -c constraints.txt -e '.[bench]'"
_NAMES = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def missing() -> str | None:
    """Why llama.cpp cannot be a peer here, if it cannot."""
    packages = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
    absent = [package for module, package in packages.items() if not find_spec(module)]
    return f"{', '.join(absent)} {HINT}" if absent else None


def make_gguf(model: Any, folder: Path, *, kind: str = "Q8_0") -> Path:
    """A file with the weights of our model, matrices as `kind`; one that is there is taken."""
    start = model.get_output_embeddings().weight[0].detach().float().numpy().tobytes()
    shape = f"{model.config.num_layers}x{model.config.hidden_size}"
    path = folder / f"{shape}-{zlib.crc32(start):08x}.{kind.lower()}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        write_gguf(model, half, kind)
        half.rename(path)
    return path


def write_gguf(model: Any, path: Path, kind: str) -> None:
    """Settings and weights; vectors stay fp32, as llama.cpp's own tool leaves them."""
    import gguf

    writer = gguf.GGUFWriter(path, "chatglm")
    config = model.config
    size = config.padded_vocab_size
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{index}" for index in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_add_bos_token(False)
    writer.add_context_length(config.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.multi_query_group_num)
    writer.add_layer_norm_rms_eps(config.layernorm_epsilon)
    writer.add_rope_dimension_count(config.kv_channels // 2)
    writer.add_rope_freq_base(10000.0)
    matrices = gguf.GGMLQuantizationType[kind]
    for name, weight in _tensors(model):
        held = weight.float().numpy()
        if weight.ndim == 1:
            writer.add_tensor(name, held)
        else:
            writer.add_tensor(name, gguf.quantize(held, matrices), raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights under llama.cpp's names."""
    for name, weight in model.named_parameters():
        before, _, leaf = name.rpartition(".")
        layer = before.removeprefix("transformer.encoder.layers.")
        if layer == before:
            yield f"{_NAMES[before]}.{leaf}", weight.detach()
        else:
            number, _, part = layer.partition(".")
            yield f"blk.{number}.{_NAMES[part]}.{leaf}", weight.detach()


class LlamaCpp:
    """A GGUF file, opened. Called like the other sides, it answers prompts one after the other, greedily."""

    def __init__(self, path: Path, threads: int) -> None:
        """`threads`: for prompts and for single tokens alike."""
        import llama_cpp

        self.cpp: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # C keeps a pointer to it
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = not cpu_has("amx_int8")
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = CONTEXT_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp does not open it")
        self.greedy = llama_cpp.llama_sampler_init_greedy()
        self.system = llama_cpp.llama_print_system_info().decode()

    def __call__(self, asked: Asked) -> Answers:
        """New ids of each prompt; nothing is kept from an earlier one."""
        return [self._answer(*one) for one in zip(asked.prompts, asked.lengths, strict=True)]

    def _answer(self, prompt: list[int], length: int) -> list[int]:
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.context), False)
        answer: list[int] = []
        ids = prompt
        for _ in range(length):
            self._read(ids)
            ids = [self.cpp.llama_sampler_sample(self.greedy, self.context, -1)]
            answer += ids
        return answer

    def logits(self, prompt: list[int]) -> Tensor:
        """Logits (V,) after a prompt."""
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.context), False)
        self._read(prompt)
        found = self.cpp.llama_get_logits_ith(self.context, -1)
        vocabulary = self.cpp.llama_vocab_n_tokens(self.cpp.llama_model_get_vocab(self.model))
        return torch.tensor(found[:vocabulary])

    def _read(self, ids: list[int]) -> None:
        tokens = (self.cpp.llama_token * len(ids))(*ids)
        status = self.cpp.llama_decode(self.context, self.cpp.llama_batch_get_one(tokens, len(ids)))
        assert status == 0, f"llama_decode: {status}"

    def close(self) -> None:
        """Free what it holds."""
        self.cpp.llama_sampler_free(self.greedy)
        self.cpp.llama_free(self.context)
        self.cpp.llama_model_free(self.model)
