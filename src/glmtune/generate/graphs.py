"""CUDA graphs: a decode step is captured once and replayed, so hundreds of kernel launches become one.

A graph reads and writes fixed addresses, and runs the layers as they were at capture. So there is one graph
per number of rows, and all are dropped when the KV cache moves or the model changes. `LayerRunner` pads
rows and columns to powers of two and keeps the cache's memory, so that there are few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmtune.generate.kv_cache import Layer

Step = Callable[[Tensor, Tensor, Sequence[Layer], Tensor], Tensor]
"""Maps tokens (B, 1), positions (B, ..., 1), keys and values, and row lengths (B,) to logits (B, V)."""
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Runs a function; returns a function that repeats it, and the tensor its result is written to each time."""

_WARM_UPS = 3  # runs before a capture, in which kernels tune and allocate, as torch's guide asks


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    replay: Replay
    logits: Tensor


class StepGraphs:
    """A decode step, captured once for each number of rows, and again when the KV cache has moved."""

    def __init__(self, step: Step, capture: Capture) -> None:
        self.step = step
        self.capture = capture
        self.graphs: dict[int, _Graph] = {}  # by the number of rows
        self._memory: object = None  # addresses and shapes that the graphs were captured with
        self._mark: object = None

    def renew(self, mark: object) -> None:
        """Drop all graphs if the model has changed since the last call; `mark`: its `mark_model`."""
        if mark != self._mark:
            self.graphs, self._mark = {}, mark

    def __call__(self, tokens: Tensor, positions: Tensor, layers: Sequence[Layer], columns: Tensor) -> Tensor:
        """As `Step`. The logits are a copy: the next replay overwrites the graph's own."""
        memory = [(part.data_ptr(), part.shape[1:]) for layer in layers for part in layer]
        if memory != self._memory:
            self.graphs, self._memory = {}, memory
        inputs = (tokens, positions, columns)
        graph = self.graphs.get(len(tokens))
        if graph is None:  # a capture reads copies of its own: the caller's tensors may move
            own_tokens, own_positions, own_columns = own = tuple(part.clone() for part in inputs)
            replay, logits = self.capture(lambda: self.step(own_tokens, own_positions, layers, own_columns))
            graph = self.graphs[len(tokens)] = _Graph(own, replay, logits)
        for fixed, new in zip(graph.inputs, inputs, strict=True):
            fixed.copy_(new)
        graph.replay()
        return graph.logits.clone()


def capture_on(device: torch.device) -> Capture:
    """Return a `Capture` that records a CUDA graph on this device.

    Running a step several times does no harm: each run writes the same keys and values to the same columns.
    Source: docs.pytorch.org, "CUDA semantics", CUDA Graphs.
    """

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        with torch.cuda.device(device):
            # warm up on a side stream, as torch's guide does it
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = run()
        return graph.replay, logits

    return capture
