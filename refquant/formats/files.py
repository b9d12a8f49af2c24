"""Write a file whole or not at all: to a temporary name in the same folder, renamed at the end.

`replacing` leaves nothing when it fails; `continuing` leaves what there is, for a later run to go on with.
"""

import contextlib
import os
from pathlib import Path

from refquant.errors import BadInput


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


@contextlib.contextmanager
def continuing(path, resume: bool):
    """Open a binary file, to read and write, that takes the name `path` when the block ends well.

    Until then it is called `.NAME.partial` and stays when the block is interrupted, but not after `BadInput`, which
    would come again; `resume` opens the one that is there.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "r+b" if resume and partial.is_file() else "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BadInput:
        partial.unlink()
        raise
    os.replace(partial, path)
