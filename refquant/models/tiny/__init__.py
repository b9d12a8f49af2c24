"""The bundled language model: this folder is an ordinary Hugging Face model, and two files of token ids.

`README.md` beside this file is the model card; `refquant/models/tiny_recipe` in the repository is how it was made.
Importing this needs NumPy only.
"""

from pathlib import Path

import numpy as np

from refquant.errors import UnknownName

FOLDER = Path(__file__).parent
PARTS = ("calibration", "evaluation")


def tokens(part: str) -> np.ndarray:
    """Token ids, uint16 [131072], of documents that the model was not trained on; the two parts share none.

    Parameters
    ----------
    part : str
        "calibration" (for methods that look at activations) or "evaluation" (for perplexity).

    Raises
    ------
    UnknownName
        Any other part. The training text is not shipped.
    """
    if part not in PARTS:
        raise UnknownName("part", part, PARTS)
    with np.load(FOLDER / "tokens.npz", allow_pickle=False) as file:
        return file[part]
