"""One JupyterLab and one Chromium for all browser tests: `pytest -m browser tests/browser`."""

import pytest
from lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab with a copy of the course, and a browser."""
    with Lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def opened(lab, request):
    """The notebook that the test's module is named after (test_02_rounding.py), opened and run from top to bottom.

    Shared by the tests of a module; after each, nothing may have gone wrong in the kernel or the browser's console.
    """
    stem = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    notebook = lab.notebook(stem)
    yield notebook
    notebook.check()
