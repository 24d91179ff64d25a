"""What every layer of a pass is given beside x: the Context, and the Execution, how it is computed."""
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lm import config
from lm.nn import attention, memory
from lm.parallel.pipeline import Pipeline


class Context(NamedTuple):
    """What a pass is given beside x [B T D], all optional but positions [B or 1, T].

    segments [B T]: only equal ones see each other, 1 where there are none. types [B T]: kinds of tokens that an
    embedding may tell apart. prefix [B T]: tokens that those before them see too, where attention is causal. memory
    [B S D], memory_segments [B S]: what cross attention reads; a layer's cache may hold the memory's keys and values
    instead. index [B T]: slots of the cache that x goes to. key: of dropout. rows [B]: numbers of the rows in the whole
    batch. zigzag: the order of tokens where the mesh splits T. token_weights [B T]: what tokens count in measurements,
    0 for padding and 1 on average over the batch. cache, angles, table: of one attention, set layer by layer.
    """

    positions: Any
    segments: Any = None
    types: Any = None
    prefix: Any = None
    memory: Any = None
    memory_segments: Any = None
    index: Any = None
    key: Any = None
    rows: Any = None
    zigzag: Any = None
    token_weights: Any = None
    cache: Any = None
    angles: Any = None
    table: Any = None


@dataclass(frozen=True)
class Execution:
    """How a model is computed, not what it is.

    dtype: of matrix products; parameters, norms, softmax and losses stay float32. precision: 8-bit products with
    weights, see weights.product. remat: what the backward pass recomputes, see memory.rematerialise. unroll: repeats of
    the pattern in one iteration of the scan, 0 for the platform's choice. kernel: which one computes attention ('auto':
    the platform's), an error where it cannot. vocab_chunks: chunks of the vocabulary in the cross entropy; logits are
    recomputed in the backward pass, never stored. pipeline: how rows go through the stages of a mesh that has some.
    """

    dtype: Literal['float32', 'bfloat16'] = 'float32'
    precision: Literal['none', 'int8', 'fp8'] = 'none'
    remat: memory.Remat = 'none'
    unroll: config.Count = 0
    kernel: attention.Kernel = 'auto'
    vocab_chunks: config.Size = 1
    pipeline: Pipeline = field(default_factory=Pipeline)

    def __post_init__(self):
        config.check(self)
