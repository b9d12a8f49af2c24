"""Calibration, one block at a time: what each Linear layer's inputs look like, and the inputs of the next block.

The activations that enter the first block are taken from one pass through the model. After that every block is run by
itself, so memory holds one block's statistics and one set of activations, never those of the whole model.
"""

import contextlib
from collections.abc import Callable, Iterable

import greenlet
import numpy as np
import torch
from torch import nn

from refquant.errors import BadInput
from refquant.methods.registry import LayerInputs
from refquant.models.walk import blocks, linears

SAMPLE = 4096  # tokens kept for "x"


class _Stop(Exception):
    """Ends a forward pass once all that it was run for is known."""


class InMemory(list):
    """The activations between two blocks, a tensor [windows, context, width] a batch."""

    def replace(self, batches: Iterable[torch.Tensor]) -> None:
        """Take those of the next block in their place."""
        self[:] = list(batches)


class Stream:
    """Activations on their way through the blocks.

    Parameters
    ----------
    model : causal LM
    ids : int [windows, context]
        Calibration windows.
    batch : int
        Windows run at a time.
    hidden : optional
        Where the activations are kept: anything with `append`, slices and `replace`, as `InMemory`.
    """

    def __init__(self, model: nn.Module, ids: np.ndarray, batch: int = 4, hidden=None):
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size:
            raise BadInput(
                f"calibration: expected token ids [windows, context] with at least one window, got {ids.shape}"
            )
        self.hidden = InMemory() if hidden is None else hidden
        self.arguments: dict[int, list[tuple[tuple, dict]]] = {}  # by batch size: each block's other arguments
        device = next(model.parameters()).device
        for part in torch.from_numpy(ids.astype(np.int64)).split(batch):
            self._enter(model, part if device.type == "meta" else part.to(device))  # hooks bring the weights

    def _enter(self, model, ids):
        """Run the model once; keep what enters the first block and, once per batch size, each block's arguments.

        They differ between blocks where window attention alternates (Gemma 3), so each block's own are kept.
        """
        captured, size = [], len(ids)
        layers = blocks(model)
        last = len(layers) - 1 if size not in self.arguments else 0

        def hook(index):
            def capture(module, args, kwargs):
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                captured.append((args[1:], kwargs))
                if index == 0:
                    self.hidden.append(hidden)
                if index == last:
                    raise _Stop

            return capture

        handles = [b.register_forward_pre_hook(hook(i), with_kwargs=True) for i, b in enumerate(layers)]
        try:
            with torch.no_grad():
                model(ids, use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self.arguments.setdefault(size, captured)

    def run(self, block: nn.Module, index: int, batches: int | None = None) -> Iterable[torch.Tensor]:
        """Yield the block's output for each batch of activations (the first `batches` of them)."""
        for hidden in self.hidden[:batches]:
            args, kwargs = self.arguments[len(hidden)][index]
            with torch.no_grad():
                out = block(hidden, *args, **kwargs)
            yield out[0] if isinstance(out, tuple) else out

    def observe(self, block: nn.Module, index: int, needs: frozenset[str]) -> dict[str, LayerInputs]:
        """Run the block for what `watch` sees; a batch ends when every Linear layer has its input."""
        with watch(block, needs, whole=False) as inputs:
            for hidden in self.hidden[:]:
                args, kwargs = self.arguments[len(hidden)][index]
                with torch.no_grad(), contextlib.suppress(_Stop):
                    block(hidden, *args, **kwargs)
        return inputs

    def advance(self, block: nn.Module, index: int) -> None:
        """Replace the activations by the block's outputs: the inputs of the next block."""
        self.hidden.replace(self.run(block, index))

    def in_turn(self, block: nn.Module, index: int, needs: frozenset[str], visit: Callable, last: bool) -> None:
        """Run the block once; `visit(name, inputs)` comes before each Linear layer's product, with all tokens' inputs.

        What `visit` leaves in the layer's weights is what the layer computes with, so each layer sees the inputs that
        the layers before it leave. The activations are replaced by the block's outputs, but for the `last` block's.

        Every batch runs in a coroutine of its own, that waits at each layer until all have reached it: memory holds
        the activations of all batches at one place of the block.
        """
        main, visited = greenlet.getcurrent(), set()

        def wait(name):
            def hook(module, args):
                if name not in visited:
                    main.switch(name, args[0])

            return hook

        def run(hidden):
            args, kwargs = self.arguments[len(hidden)][index]
            out = block(hidden, *args, **kwargs)
            return None, out[0] if isinstance(out, tuple) else out

        layers = linears(block)
        handles = [layer.register_forward_pre_hook(wait(name)) for name, layer in layers.items()]
        runs = [greenlet.greenlet(run) for _ in self.hidden[:]]
        try:
            with torch.no_grad():
                reached = [each.switch(hidden) for each, hidden in zip(runs, self.hidden[:], strict=True)]
                before, inputs = [None] * len(runs), None
                while (name := reached[0][0]) is not None:
                    if any(other != name for other, _ in reached):
                        raise BadInput("different windows run through different layers; use true_sequential=False")
                    xs = [x for _, x in reached]
                    if any(x is not known for x, known in zip(xs, before, strict=True)):  # q, k and v share theirs
                        inputs, before = LayerInputs(), xs
                        for x in xs:
                            _accumulate(inputs, x.flatten(0, -2).float(), needs, SAMPLE)
                    visited.add(name)
                    visit(name, inputs)
                    if last and len(visited) == len(layers):
                        return
                    reached = [each.switch() for each in runs]
            self.hidden.replace([output for _, output in reached])
        finally:
            for handle in handles:
                handle.remove()
            for each in runs:
                each.throw()  # ends it


@contextlib.contextmanager
def watch(block: nn.Module, needs: frozenset[str], sample: int = SAMPLE, whole: bool = True):
    """Collect, while the block runs, what `needs` names of each Linear layer's inputs; yields {layer: LayerInputs}.

    Layers that share one input tensor (q, k, v) share one `LayerInputs`. `sample` bounds the tokens kept for "x".
    Not `whole`: end each run (`_Stop`) at the layer whose input completes them, before its product.
    """
    layers = linears(block)
    collected = {name: LayerInputs() for name in layers}
    current: tuple | None = None  # the input tensor seen last, and the layer that received it first
    seen = set()

    def hook(name):
        def look(module, args):
            nonlocal current
            seen.add(name)
            if current is not None and current[0] is args[0]:
                collected[name] = collected[current[1]]
            else:
                current = (args[0], name)
                _accumulate(collected[name], args[0].detach().flatten(0, -2).float(), needs, sample)
            if not whole and len(seen) == len(layers):
                raise _Stop

        return look

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    handles.append(block.register_forward_pre_hook(lambda module, args: seen.clear()))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def layer_inputs(
    model: nn.Module, ids: np.ndarray, needs: Iterable[str] = ("x", "hessian", "mean_abs"), sample: int = SAMPLE
) -> dict[tuple[int, str], LayerInputs]:
    """What every Linear layer of the model as it is receives on `ids` [windows, context], by (block, layer's name).

    For looking at; to quantize, `Stream` calibrates each block on the blocks already quantized. Layers that share one
    input tensor share one `LayerInputs`. `needs` and `sample` as for `watch`.
    """
    stream, found = Stream(model, ids), {}
    for index, block in enumerate(blocks(model)):
        with watch(block, frozenset(needs), sample) as inputs:
            stream.advance(block, index)
        found |= {(index, name): each for name, each in inputs.items()}
    return found


def _accumulate(inputs: LayerInputs, x: torch.Tensor, needs: frozenset[str], sample: int) -> None:
    """Update the running means with x [tokens, in]."""
    if not torch.isfinite(x.sum(dtype=torch.float64)):  # one pass; finite float32 cannot overflow it
        raise BadInput("calibration: a layer received NaN or infinite activations; the model or the text is broken")
    inputs.tokens += len(x)
    share = len(x) / inputs.tokens
    if "hessian" in needs:
        inputs.hessian = inputs.hessian or Hessian(x)
        inputs.hessian.add(x)
    for name, values in (("mean_square", torch.square), ("mean_abs", torch.abs)):
        if name in needs:
            old, new = getattr(inputs, name), values(x).mean(dim=0, dtype=torch.float64).cpu().numpy()
            setattr(inputs, name, new if old is None else old * (1 - share) + new * share)
    if "x" in needs:
        room = sample - (0 if inputs.x is None else len(inputs.x))
        if room > 0:
            part = x[:room].cpu().numpy()
            inputs.x = part if inputs.x is None else np.concatenate([inputs.x, part])


class Hessian:
    """`gptq.Hessian` where the activations are: the same running mean 2/n sum x xᵀ, float32, on x's device.

    Not only for GPUs: NumPy's and torch's threads wait for work by spinning, each on the cores that the other needs.
    Only the lower triangle is summed, a panel of columns at a time: the other half is the same numbers.
    """

    PANEL = 256

    def __init__(self, x: torch.Tensor):
        self._sum, self.n, self._whole = x.new_zeros(x.shape[1], x.shape[1]), 0, None

    def add(self, x: torch.Tensor) -> None:
        """Take in x float32 [tokens, in]."""
        self.n += len(x)
        self._whole = None
        for start in range(0, x.shape[1], self.PANEL):
            below, panel = x[:, start:], x[:, start : start + self.PANEL]
            part = self._sum[start:, start : start + self.PANEL]
            part.addmm_(below.T, panel, beta=1 - len(x) / self.n, alpha=2 / self.n)

    @property
    def H(self) -> np.ndarray:
        """The mean so far, float32 [in, in]."""
        if self._whole is None:  # it is asked for by each layer that shares it
            lower = self._sum.tril()
            self._whole = (lower + lower.tril(-1).T).cpu().numpy()
        return self._whole
