"""Notebook 10, verify yours: bugs to recognise by their error."""

from refquant.figures import verify_yours
from refquant.widgets.explorer import Explorer, check, explore, slider


def bugs() -> Explorer:
    """Wrong decoders by number; a box tells what each does."""

    def draw(number, told):
        return verify_yours.bug(number, told)

    return explore(
        draw,
        number=slider("bug", 0, 0, len(verify_yours.decoders()) - 1),
        told=check("tell me what it does", False),
    )
