"""On a GPU: decoders to the bit, products by the accuracy rule, launches checked, captured and on other streams.

The rule: finite, and the largest error against float64 at most twice that of a plain float32 loop over the same float16
activations (one rounding of the sum of magnitudes is granted, since among few results the loop's can be exact by luck).
float32 results are held to it as they are; float16 and bfloat16 ones to it plus half a step of their own.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

from product_cases import FLOATS, GRIDS, OTHERS, quantized  # noqa: E402
from refquant_kernels.cuda import decoder, launch, products, strips  # noqa: E402

import refquant as rq  # noqa: E402
from refquant.errors import BadInput  # noqa: E402
from refquant.models.linear import QuantLinear  # noqa: E402
from refquant.quantized import Quantized, find_format  # noqa: E402


def width(name, k):
    """The multiple of the format's block nearest below k."""
    step = {"nf4": 64, "nf4-dq": 64, "nf4-b128": 128, "mxfp4": 32, "nvfp4": 32}.get(name, 1)
    step = strips.WEIGHTS.get(name, step)
    return max(1, k // step) * step


def assert_accurate(got, x, w, step=0.0):
    """`step`: the relative rounding of the result's own dtype."""
    x, w = x.float(), w.float()
    exact, loop = x.double() @ w.double().T, torch.zeros(len(x), len(w), device=x.device)
    for j in range(w.shape[1]):
        loop += x[:, j, None] * w[None, :, j]
    assert torch.isfinite(got).all()
    magnitude = (x.double().abs() @ w.double().abs().T).max().item()
    allowed = max(2 * (loop.double() - exact).abs().max().item(), magnitude * 2.0**-24)
    worst = ((got.double() - exact).abs() - step * exact.abs()).max().item()
    assert worst <= allowed


def multiplied(packed, x, dtype):
    """The product, in a poisoned buffer with a row to spare that must stay poisoned."""
    y = torch.full((len(x) + 1, packed.shape[0]), float("nan"), dtype=dtype, device=x.device)
    products.multiply(packed, x, y[:-1])
    assert torch.isnan(y[-1]).all()
    return y[:-1]


@pytest.mark.parametrize("name", [*strips.GGUF, *FLOATS, *GRIDS, *OTHERS, "llm-int8"])
def test_decoders_to_the_bit(name):
    for n, k in ((1, width(name, 256)), (3, width(name, 768)), (50, width(name, 2304))):
        if find_format(name).stream:  # every byte string is legal
            data = np.random.default_rng().integers(0, 256, find_format(name).nbytes((n, k)), dtype=np.uint8)
            q = Quantized.from_bytes(data, name, (n, k))
        else:
            q = quantized(name, n, k)
        with np.errstate(all="ignore"):
            want = rq.dequantize(q)
        got, nan = rq.dequantize(q, backend="cuda"), np.isnan(want)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_decodes(name):
    data = np.resize(np.arange(65536, dtype=np.uint16), (256, 257))
    q = Quantized(name, (256, 257), {"blocks": data.view(np.uint8)})
    got, want = rq.dequantize(q, backend="cuda"), rq.dequantize(q)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", [*strips.GGUF, *FLOATS, *GRIDS, *OTHERS])
def test_products_of_every_format(name):
    """Ragged rows and columns; one token, a few, more than a tile; NumPy in and out."""
    for n, k in ((37, width(name, 800)), (5, width(name, 300))):
        q = quantized(name, n, k)
        w = torch.from_numpy(rq.dequantize(q)).cuda()
        for m in (1, 3, 20):
            x = np.random.default_rng().standard_normal((m, k)).astype(np.float16)
            got = rq.matmul(x.astype(np.float32), q, backend="cuda")
            assert got.dtype == np.float32
            assert_accurate(torch.from_numpy(got).cuda(), torch.from_numpy(x).cuda(), w)


@pytest.mark.parametrize("name", ["int4-g128", "Q4_K", "Q6_K", "int3-g128", "nf4", "fp8-e4m3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [1056, 1000])
def test_products_of_every_number_of_tokens(name, dtype, k):
    q = quantized(name, 200, width(name, k))
    w, packed = torch.from_numpy(rq.dequantize(q)).cuda(), strips.pack(q, torch.device("cuda", 0))
    for m in (1, 2, 8, 9, 16, 17, 33, 64, 65, 128, 130):
        x = torch.randn(m, q.shape[1], device="cuda").to(dtype)
        assert_accurate(multiplied(packed, x, torch.float32), x, w)
    step = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    for m in (1, 40):
        x = torch.randn(m, q.shape[1], device="cuda").to(dtype)
        assert_accurate(multiplied(packed, x, dtype), x, w, step)


@pytest.mark.parametrize("name", ["int4-g128", "Q4_K", "Q3_K", "Q5_0", "nf4", "Q8_0"])
def test_products_without_hopper(name):
    """The kernels of older GPUs, on this one: every tile."""
    q = quantized(name, 150, width(name, 1000))
    w, packed = torch.from_numpy(rq.dequantize(q)).cuda(), strips.pack(q, torch.device("cuda", 0))
    for m in (2, 8, 16, 30, 64, 100, 140):
        x, y = torch.randn(m, q.shape[1], device="cuda").half(), torch.full((m, 150), float("nan"), device="cuda")
        products.gemm(packed, x, y)
        assert_accurate(y, x, w)


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1, 8192), (1000, 14336)])
def test_products_of_real_sizes(n, k):
    q = quantized("int4-g128", n, k)
    w, packed = torch.from_numpy(rq.dequantize(q)).cuda(), strips.pack(q, torch.device("cuda", 0))
    for m in (1, 16):
        x = torch.randn(m, k, device="cuda").half()
        assert_accurate(multiplied(packed, x, torch.float32), x, w)


def test_the_rungs():
    n, k = 100, 1024
    q = quantized("int4-g128", n, k)
    w, packed = torch.from_numpy(rq.dequantize(q)).cuda(), strips.pack(q, torch.device("cuda", 0))
    plain = [torch.from_numpy(q.arrays[key]).cuda() for key in ("codes", "scales", "zeros")]
    x = torch.randn(1, k, device="cuda").half()
    for rung, grid in (("gemv_v1", 1), ("gemv_v2", n // 4)):
        y = torch.full((1, n), float("nan"), device="cuda")
        launch.load("gemv_plain.cu", rung, GROUP=128)((grid, 1, 1), (128, 1, 1), *plain, x, y, n, k)
        assert_accurate(y, x, w)
    y = torch.full((1, n), float("nan"), device="cuda")
    kernel = launch.load("gemv.cu", "gemv_v3", WARPS=4, **products._types(x, y), **packed.layout.defines)
    kernel((-(-n // 16), 1, 1), (128, 1, 1), packed.data, x, products._levels(packed), y, n, k)
    assert_accurate(y, x, w)


def test_the_rule_rejects_planted_faults():
    w, x = torch.randn(16, 512, device="cuda"), torch.randn(2, 512, device="cuda").half()
    good = x.float() @ w.T
    assert_accurate((x.double() @ w.double().T).float(), x, w)
    nan, scaled = good.clone(), good.clone()
    nan[1, 3] = float("nan")
    scaled[:, 5] *= 1.01
    for bad in (nan, scaled, x[:, :-1].float() @ w[:, :-1].T, good.flip(1)):
        with pytest.raises(AssertionError):
            assert_accurate(bad, x, w)


def test_activations_of_any_size():
    """bfloat16 goes by way of float16: huge and tiny tokens, an empty one, NaN and infinity where they belong."""
    q = quantized("int4-g128", 64, 512)
    w, packed = torch.from_numpy(rq.dequantize(q)).cuda(), strips.pack(q, torch.device("cuda", 0))
    for m in (1, 4):
        for size in (1e30, 1e-30, 1.0):
            x = (torch.randn(m, 512, device="cuda") * size).bfloat16()
            assert_accurate(multiplied(packed, x, torch.float32), x, w)
        zero = torch.zeros(m, 512, device="cuda", dtype=torch.bfloat16)
        assert not multiplied(packed, zero, torch.float32).any()
        x[-1, 300] = float("nan")
        y = multiplied(packed, x, torch.float32)
        assert torch.isnan(y[-1]).all()
        assert torch.isfinite(y[:-1]).all()


def test_groups_by_an_index():
    rng = np.random.default_rng()
    q = quantized("int4-g64", 40, 512)
    q = Quantized(q.format, q.shape, q.arrays | {"g_idx": rng.permutation(np.arange(512, dtype=np.int32) // 64)})
    x = rng.standard_normal((3, 512)).astype(np.float16)
    w = torch.from_numpy(rq.dequantize(q)).cuda()
    assert_accurate(torch.from_numpy(rq.matmul(x, q, backend="cuda")).cuda(), torch.from_numpy(x).cuda(), w)
    np.testing.assert_array_equal(rq.dequantize(q, backend="cuda"), rq.dequantize(q))


def test_graphs_and_streams():
    q = quantized("Q4_K", 300, 1024)
    product = products.prepare(q)
    for m in (1, 24):
        x = torch.randn(m, 1024, device="cuda").half()
        want = product(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            product(x)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = product(x)
        for _ in range(3):
            x.copy_(torch.randn(m, 1024, device="cuda"))
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(y, product(x))
        assert not torch.equal(y, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_second_gpu():
    """The tensors say where, whatever the current device; what is packed for one is not used on the other."""
    q = quantized("int4-g128", 200, 1000)
    w = torch.from_numpy(rq.dequantize(q))
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        for m in (1, 20):
            x = torch.randn(m, 1000, device=device).half()
            got = products.prepare(q, device)(x, wide=True)
            assert got.device == x.device
            assert_accurate(got, x, w.to(device))
    with torch.cuda.device(1):
        x = np.random.default_rng().standard_normal((3, 1000)).astype(np.float16)
        assert_accurate(torch.from_numpy(rq.matmul(x, q, backend="cuda")), torch.from_numpy(x), w)
        np.testing.assert_array_equal(rq.dequantize(q, backend="cuda"), rq.dequantize(q))
    kernel = launch.load("decoder.cu", "gate")
    with pytest.raises(BadInput, match="expected one GPU"):
        kernel(
            (1, 1, 1), (32, 1, 1), torch.zeros(64, device="cuda:0").half(), torch.zeros(32, device="cuda:1").half(), 32
        )


def test_what_a_kernel_does_not_take():
    kernel = launch.load("decoder.cu", "gate")
    ab, y = torch.zeros(64, device="cuda").half(), torch.zeros(32, device="cuda").half()
    grid, block = (1, 1, 1), (32, 1, 1)
    kernel(grid, block, ab, y, 32)
    for bad in (
        (ab.float(), y, 32),
        (ab.cpu(), y, 32),
        (ab, y.cpu(), 32),
        (ab[::2], y, 32),
        (ab, y, 2**31),
        (ab, y, 1.5),
    ):
        with pytest.raises(BadInput, match="gate"):
            kernel(grid, block, *bad)
    with pytest.raises(BadInput, match="takes"):
        kernel(grid, block, ab, y)
    with pytest.raises(rq.RefquantError, match="launch of gate"):
        kernel(grid, (2048, 1, 1), ab, y, 32)


def test_activations_that_do_not_fit():
    q = quantized("Q4_0", 4, 64)
    with pytest.raises(BadInput, match="float16"):
        rq.matmul(np.full((1, 64), 1e6, np.float32), q, backend="cuda")
    with pytest.raises(BadInput, match="expected float16"):
        products.prepare(q)(torch.zeros(1, 64, device="cuda"))


def test_quant_linear_stays_on_the_gpu():
    q = quantized("int4-g128", 96, 512)
    bias = torch.randn(96, device="cuda").half()
    layer = QuantLinear(q, bias, backend="cuda")
    dense = QuantLinear(q, bias.float(), backend="dense")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(2, 3, 512, device="cuda").half().to(dtype)
        layer.bias = bias.to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        assert y.shape == (2, 3, 96)
        torch.testing.assert_close(y.float(), dense(x.float()), rtol=1e-2, atol=1e-2)


def reference_step(model, token, position, keys, values):
    """The same step in plain torch, float32, one layer at a time."""
    s = model.shape
    h = model.embedding[token].float()

    def norm(v, weight):
        return v * torch.rsqrt((v * v).mean() + 1e-5) * weight.float()

    def rotate(v):
        c, sine = model.cosine[position], model.sine[position]
        return torch.cat([v[..., :64] * c - v[..., 64:] * sine, v[..., 64:] * c + v[..., :64] * sine], -1)

    for i, layer in enumerate(model.layers):
        qkv, o, gate_up, down = (linear.weight for linear in layer["linears"])
        heads = (qkv @ norm(h, layer["norms"][0])).view(-1, 128)
        q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads])
        keys[i].append(rotate(k)), values[i].append(v)
        all_keys, all_values = (
            torch.stack(some, 1).repeat_interleave(s.heads // s.kv_heads, 0) for some in (keys[i], values[i])
        )
        weights = torch.softmax((all_keys @ rotate(q)[..., None])[..., 0] / 128**0.5, -1)
        h = h + o @ (weights[..., None] * all_values).sum(1).view(-1)
        both = gate_up @ norm(h, layer["norms"][1])
        in_turn = isinstance(layer["linears"][2], decoder.StripsLinear)  # eight rows of a, eight of b
        a, b = (part.flatten() for part in both.view(-1, 2, 8).unbind(1)) if in_turn else both.chunk(2)
        h = h + down @ (torch.nn.functional.silu(a) * b)
    return model.head.weight @ norm(h, model.norm)


@pytest.mark.parametrize("name", ["int4-g128", "Q4_K", "float16"])
def test_the_decoder_against_plain_torch(name):
    shape = decoder.Shape(layers=2, width=512, heads=4, kv_heads=2, hidden=768, vocabulary=1000, places=64)

    def linear(n, k):
        if name == "float16":
            w = (torch.randn(n, k, device="cuda") * 0.02).half()
            multiply = decoder.float16_linear(w)

            def found(x, y):
                multiply(x, y)
        else:
            q = rq.quantize((np.random.default_rng().standard_normal((n, k)) * 0.02).astype(np.float32), name)
            w = torch.from_numpy(rq.dequantize(q)).cuda()
            found = decoder.StripsLinear(strips.pack(q, torch.device("cuda", 0)))
        found.weight = w.float()
        return found

    model = decoder.Decoder(shape, linear, torch.device("cuda", 0))
    keys, values = [[] for _ in range(2)], [[] for _ in range(2)]
    want = reference_step(model, 0, 0, keys, values)
    graph = model.capture()  # takes the first token through
    torch.cuda.synchronize()
    for position in range(1, 41):
        logits = model.buffers["logits"][0].float()
        assert (logits - want).norm() <= 0.01 * want.norm()
        assert int(model.position) == position
        want = reference_step(model, int(model.token), position, keys, values)
        graph.replay()
        torch.cuda.synchronize()
