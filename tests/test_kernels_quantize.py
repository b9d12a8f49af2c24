"""The Numba encoders: ggml's bytes, whatever the shape, the layout in memory and the number of threads."""

import subprocess
import sys

import ggml
import numba
import numpy as np
import pytest
import rows
from test_kquants import IGNORE_IMPORTANCE, NAMES, sources  # noqa: F401 (a fixture)

import refquant as rq
from refquant.errors import BadInput

NAMES = [name for name in NAMES if name != "F32"]
SMALL = [name for name in NAMES if ggml.sizes(name)[0] == 32]


def encode(w, name, importance=None):
    return rq.quantize(w, name, importance=importance, backend="numba").arrays["blocks"]


def assert_same_bytes(w, name, importance=None):
    got, want = encode(w, name, importance), ggml.quantize(w, name, importance)
    different = (got != want).reshape(-1, ggml.sizes(name)[1]).any(axis=1)
    assert not different.any(), f"{different.sum()} of {different.size} blocks, the first {different.argmax()}"


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", rows.IMPORTANCE)
def test_encode_equals_ggml(name, kind, sources):  # noqa: F811
    for w in sources.values():
        assert_same_bytes(w, name, rows.importance(kind, np.random.default_rng(21), w.shape[1]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["none", "ordinary", "one column in 16", "one column in 64"])
def test_rare_branches(name, kind):
    """Fast enough for 12,000 blocks: scales that come out negative, the fifth round of the descent."""
    rng = np.random.default_rng(32)
    assert_same_bytes(rows.crafted(rng, 1500, 512), name, rows.importance(kind, rng, 512))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (15, 1), (16, 1), (17, 1), (5, 7), (33, 3)])
def test_numbers_of_blocks_that_do_not_fill_the_lanes(name, shape):
    """`shape` counts rows and blocks of a row. Sixteen blocks are done at a time, across rows."""
    rng = np.random.default_rng(33)
    n, k = shape[0], shape[1] * ggml.sizes(name)[0]
    w = rows.heavy_tailed(rng, n, k)
    for kind in ("none", "ordinary"):
        assert_same_bytes(w, name, rows.importance(kind, rng, k))


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("k", [1, 15, 16, 17, 250, 4099])
def test_casts_of_any_width(name, k):
    w = rows.heavy_tailed(np.random.default_rng(k), 3, k)
    w.reshape(-1)[:8] = np.array([65504, 65519.99, 65520, -1e9, 2.0**-14, 2.0**-25, 3e-8, -0.0])[: w.size]
    assert_same_bytes(w, name)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_does_not_show(name, threads):
    rng = np.random.default_rng(34)
    w, importance = rows.gaussian(rng, 400, 768), rows.importance("ordinary", rng, 768)
    threads(1)
    alone = encode(w, name, importance)
    for count in range(2, numba.config.NUMBA_NUM_THREADS + 1):
        threads(count)
        np.testing.assert_array_equal(encode(w, name, importance), alone)


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q4_K", "Q6_K", "IQ4_XS"])
def test_views_and_other_floats_are_accepted(name):
    w = rows.gaussian(np.random.default_rng(26), 256, 512)
    for view in (w.T, w[::2], w[:, ::-1], w.astype(np.float64)[:3], w.astype(np.float16)[:3]):
        np.testing.assert_array_equal(encode(view, name), ggml.quantize(np.array(view, np.float32, order="C"), name))


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused(name):
    w = np.ones((2, 256), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(BadInput, match=r"\[1, 3\]"):
        encode(w, name)
    importance = np.ones(256, np.float32)
    importance[7] = -1
    with pytest.raises(BadInput, match="column 7"):
        encode(np.ones((2, 256), np.float32), name, importance)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IGNORE_IMPORTANCE])
def test_an_importance_of_another_dtype_is_converted(name):
    w = rows.gaussian(np.random.default_rng(35), 4, 256)
    importance = np.arange(256)
    np.testing.assert_array_equal(encode(w, name, importance), encode(w, name, importance.astype(np.float32)))


# ---- the backend itself


def run(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env={**os.environ, **environment}, check=True
    )


def test_without_numba_the_backend_is_unavailable():
    code = (
        "import sys; sys.modules['numba'] = None; import numpy as np, refquant as rq\n"
        "try: rq.quantize(np.ones((1, 256), 'f'), 'Q4_K', backend='numba')\n"
        "except rq.errors.BackendUnavailable as problem: print(problem)"
    )
    assert "numba" in run(code).stdout


def test_compiling_is_announced_and_kept(tmp_path):
    code = (
        "import numpy as np, refquant as rq; print(rq.quantize(np.ones((1, 32), 'f'), 'F16', backend='numba').nbytes)"
    )
    first, second = (run(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stdout == second.stdout == "64\n"
    assert "compiling quantize_half" in first.stderr
    assert second.stderr == ""


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    """The folder is there when the kernels are made, and gone, a file in its place, when the code is to be saved."""
    code = (
        "import numpy as np, refquant as rq, shutil; from refquant_kernels.cpu import quantize_rounded\n"
        f"shutil.rmtree({str(tmp_path / 'cache')!r}); open({str(tmp_path / 'cache')!r}, 'w').close()\n"
        "print(rq.quantize(np.ones((1, 32), 'f'), 'F16', backend='numba').nbytes)"
    )
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout == "64\n"
    (tmp_path / "file").write_text("")
    code = (
        "import numba, numba.core.caching as c; c.CacheImpl._locator_classes = [c.UserProvidedCacheLocator]\n"
        "import numpy as np, refquant as rq; print(rq.quantize(np.ones((1, 32), 'f'), 'F16', backend='numba').nbytes)"
    )
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path / "file")).stdout == "64\n"


def test_the_cache_knows_the_whole_package():
    """A change of a helper must not leave a kernel that was compiled with the old one."""
    from refquant_kernels.cpu import compile as compiling

    digest = compiling._source_stamp()
    from refquant_kernels.cpu.quantize_k import quantize_k_symmetric

    assert quantize_k_symmetric._cache._cache_file._source_stamp == digest
