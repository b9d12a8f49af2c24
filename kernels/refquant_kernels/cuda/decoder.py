"""One token through a model shaped like Llama, all on the GPU, in one CUDA graph: what decode speed is measured on.

Weights are whatever `linear` makes of a shape: float16 (cuBLAS) or strips of a quantized format. The graph reads the
token and the position from buffers and writes the next token (greedy) and the position back, so that it can be replayed
as it is. Leaves out: batches, prefill, sampling, loading a checkpoint; heads are 128 wide.
"""

from dataclasses import dataclass

from refquant_kernels.cuda import launch, products


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are Llama-3-8B's."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14336
    vocabulary: int = 128256
    places: int = 1024  # of the cache
    theta: float = 500000.0

    def linears(self) -> list[tuple[int, int, int]]:
        """(out, in, how many) of every product of a token: q k v together, o, gate and up together, down, the head."""
        fused = (self.heads + 2 * self.kv_heads) * 128
        layer = [(fused, self.width), (self.width, self.heads * 128), (2 * self.hidden, self.width)]
        layer.append((self.width, self.hidden))
        return [(n, k, self.layers) for n, k in layer] + [(self.vocabulary, self.width, 1)]


def float16_linear(w):
    """A product of float16 weights [n, k], by cuBLAS."""
    torch = launch.torch()
    return lambda x, y: torch.mm(x, w.T, out=y)


class StripsLinear:
    """A product of weights in strips, which can take in the norm before it, or the gate or the addition behind it."""

    def __init__(self, w):
        self.strips = w

    def __call__(self, x, y) -> None:
        """Write x W^T to y."""
        products.multiply(self.strips, x, y)

    def normalized(self, h, weight, y) -> None:
        """Write the product with h / rms(h) * weight to y; h float32."""
        products.gemv(self.strips, h, y, made_by={"INPUT": "I_NORM"}, extra=weight)

    def gated(self, h, weight, y) -> None:
        """Write silu(a) b to y, where a and b are the product with h / rms(h) * weight: eight rows of a, eight of b."""
        products.gemv(self.strips, h, y, made_by={"INPUT": "I_NORM", "GATE": 1}, extra=weight)

    def joined(self, halves, h) -> None:
        """Add the product with what `attend` left to h."""
        products.gemv(self.strips, halves, h, made_by={"INPUT": "I_HALVES", "ADD": 1})

    def added(self, x, h) -> None:
        """Add the product with x to h."""
        products.gemv(self.strips, x, h, made_by={"ADD": 1})


class Decoder:
    """A model of random numbers, and the step that takes one token through it.

    Parameters
    ----------
    shape : Shape
    linear : callable
        `linear(n, k)` makes a matrix [n, k] and returns the function (x [1, k], y [1, n]) that multiplies by it.
    device : torch.device
    """

    def __init__(self, shape: Shape, linear, device):
        torch = launch.torch()
        self.shape = s = shape
        half = {"dtype": torch.float16, "device": device}
        fused = (s.heads + 2 * s.kv_heads) * 128
        self.layers = [
            {
                "norms": [torch.ones(s.width, **half), torch.ones(s.width, **half)],
                "linears": [linear(n, k) for n, k, _ in s.linears()[:4]],
                "caches": [torch.zeros(s.kv_heads, s.places, 128, **half) for _ in range(2)],
            }
            for _ in range(s.layers)
        ]
        self.head, self.norm = linear(s.vocabulary, s.width), torch.ones(s.width, **half)
        self.embedding = torch.randn(s.vocabulary, s.width, **half)
        angles = torch.arange(s.places, device=device)[:, None] / s.theta ** (
            torch.arange(64, device=device)[None, :] / 64
        )
        self.cosine, self.sine = angles.cos(), angles.sin()
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.h = torch.zeros(s.width, dtype=torch.float32, device=device)
        sizes = {"x": s.width, "qkv": fused, "attended": s.heads * 128, "more": s.width, "gated": s.hidden}
        sizes |= {"both": 2 * s.hidden, "logits": s.vocabulary}
        self.buffers = {name: torch.zeros(1, size, **half) for name, size in sizes.items()}
        self.halves = torch.zeros(2 * s.heads * 130, **half)  # a float32 is two of them
        self.kernels = {name: launch.load("decoder.cu", name) for name in ("normalize", "attend", "join", "gate")}
        self.graph = None

    def _normalize(self, weight, add: bool):
        b = self.buffers
        args = (self.h, b["more"], weight, b["x"], self.shape.width, int(add), 1e-5)
        self.kernels["normalize"]((1, 1, 1), (1024, 1, 1), *args, overlap=True)

    def step(self) -> None:
        """Compute the logits of the token at its position; choose the next token; move on by one place."""
        b = self.buffers
        self.h.copy_(self.embedding.index_select(0, self.token)[0])
        if isinstance(self.head, StripsLinear):
            for layer in self.layers:
                self._layer_of_four(layer)
            self.head.normalized(self.h, self.norm, b["logits"])
        else:
            for i, layer in enumerate(self.layers):
                self._layer(layer, first=i == 0)
            self._normalize(self.norm, add=True)
            self.head(b["x"], b["logits"])
        self.token.copy_(b["logits"].argmax(dim=1))
        self.position.add_(1)

    def _layer_of_four(self, layer):
        """Four products and the attention, five launches."""
        b, (qkv, o, gate_up, down) = self.buffers, layer["linears"]
        qkv.normalized(self.h, layer["norms"][0], b["qkv"])
        self._attend(layer["caches"])
        o.joined(self.halves, self.h)
        gate_up.gated(self.h, layer["norms"][1], b["gated"])
        down.added(b["gated"], self.h)

    def _layer(self, layer, first: bool):
        """The same with products that can do nothing else."""
        b, (qkv, o, gate_up, down) = self.buffers, layer["linears"]
        self._normalize(layer["norms"][0], add=not first)
        qkv(b["x"], b["qkv"])
        self._attend(layer["caches"])
        self._join()
        o(b["attended"], b["more"])
        self._normalize(layer["norms"][1], add=True)
        gate_up(b["x"], b["both"])
        self._gate()
        down(b["gated"], b["more"])

    def between_products(self, layer) -> None:
        """Launch what a layer launches besides its products: for measurements."""
        if not isinstance(self.head, StripsLinear):
            for norm in layer["norms"]:
                self._normalize(norm, add=True)
            self._join()
            self._gate()
        self._attend(layer["caches"])

    def _join(self):
        args = (self.halves, self.buffers["attended"], self.shape.heads)
        self.kernels["join"]((self.shape.heads, 1, 1), (128, 1, 1), *args, overlap=True)

    def _gate(self):
        b, k = self.buffers, self.shape.hidden
        self.kernels["gate"]((-(-k // 256), 1, 1), (256, 1, 1), b["both"], b["gated"], k, overlap=True)

    def _attend(self, caches):
        s, b = self.shape, self.buffers
        args = (b["qkv"], self.cosine, self.sine, *caches, self.position, self.halves, s.heads, s.kv_heads, s.places)
        self.kernels["attend"]((2 * s.heads, 1, 1), (256, 1, 1), *args, shared=2 * s.places + 8, overlap=True)

    def capture(self):
        """Record the step as a CUDA graph and return it; `replay()` is one token."""
        torch = launch.torch()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        return self.graph
