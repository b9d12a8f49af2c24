"""Write a file whole or not at all: to a temporary name in the same folder, renamed at the end."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Open a binary file that takes the name `path` when the block ends well, and disappears when it does not.

    A reader therefore sees the old file or the new one. The folder must exist; errors of the operating system pass
    through as they are.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
