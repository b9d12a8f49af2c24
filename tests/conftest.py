"""Options of the test suite."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="a million weights and 100,000 blocks a case, not a sample")
    parser.addoption("--gigabytes", type=float, default=4.0, help="size of the model of tests/test_large.py")
    parser.addoption(
        "--weights",
        action="append",
        default=[],
        type=Path,
        help="a .safetensors or .gguf file whose rows to quantize, too",
    )


@pytest.fixture(scope="session")
def full(request):
    """Whether the long runs are asked for."""
    return request.config.getoption("--full")
