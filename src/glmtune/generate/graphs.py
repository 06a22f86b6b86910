"""A decode step on CUDA, captured once and replayed: its hundreds of launches become one.

A graph reads and writes memory that stays where it is, and runs the layers as they were. So there is one for
each number of rows, and none outlives the rows' room or a change of the model. `LayerRunner` takes powers of
two of both and keeps the room, so there are few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glmtune.generate.kv_cache import Layer

Step = Callable[[Tensor, Tensor, Sequence[Layer], Tensor], Tensor]
"""Logits (B, V) of tokens (B, 1), their positions (B, ..., 1), every layer's rows and their lengths (B,)."""
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Runs what is given, and gives what runs it again and where its result then lies."""

_WARM_UPS = 3  # kernels choose their ways and take their memory before a capture, as torch's guide wants


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    replay: Replay
    logits: Tensor


class StepGraphs:
    """A step that is captured once for each number of rows, and anew when the rows have moved."""

    def __init__(self, step: Step, capture: Capture) -> None:
        self.step = step
        self.capture = capture
        self.graphs: dict[int, _Graph] = {}  # by the number of rows
        self._place: Any = None
        self._mark: object = None

    def renew(self, mark: object) -> None:
        """Let all graphs go if the model has changed; `mark`: what changes with it (`mark_model`)."""
        if mark != self._mark:
            self.graphs, self._mark = {}, mark

    def __call__(self, tokens: Tensor, positions: Tensor, layers: Sequence[Layer], columns: Tensor) -> Tensor:
        """As `Step`. The logits are a copy: the next replay writes over its own."""
        memory = [(part.data_ptr(), part.shape[1:]) for layer in layers for part in layer]
        if memory != self._place:  # a graph holds the memory that it was captured for
            self.graphs, self._place = {}, memory
        given = (tokens, positions, columns)
        graph = self.graphs.get(len(tokens)) or self._capture(given, layers)
        self.graphs[len(tokens)] = graph
        for held, new in zip(graph.inputs, given, strict=True):
            held.copy_(new)
        graph.replay()
        return graph.logits.clone()

    def _capture(self, given: tuple[Tensor, ...], layers: Sequence[Layer]) -> _Graph:
        tokens, positions, columns = held = tuple(part.clone() for part in given)
        replay, logits = self.capture(lambda: self.step(tokens, positions, layers, columns))
        return _Graph(held, replay, logits)


def capture_on(device: torch.device) -> Capture:
    """`Capture` by a CUDA graph of this device.

    Running a step several times is no harm: each writes the same keys and values to the same columns.
    Source: docs.pytorch.org, "CUDA semantics", CUDA Graphs.
    """

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        with torch.cuda.device(device):
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
