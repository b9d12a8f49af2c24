"""How long a reader waits: `python tests/browser/redraw.py [02_rounding ...]` moves the controls of every explorer.

One line for each slider, menu and check box: milliseconds from the key press to the new figure, decoded and ready for
the screen, in Chromium: the median and the longest of a few steps. The target is 200 on two cores. A measurement, not a
test: it depends on what else the machine does.
"""

import re
import statistics
import sys
import tempfile
from pathlib import Path

from lab import Lab

from refquant import course

STEPS = 8
# Resolves with the milliseconds between the next key (of a menu, the choice) and the picture that it brings; null where
# none comes.
WAIT = """view => {
    let pressed;
    for (const kind of ['keydown', 'input'])
        document.addEventListener(kind, () => { pressed ??= performance.now() }, {capture: true, once: true});
    window.redrawn = new Promise(resolve => {
        setTimeout(resolve, 3000, null);
        new MutationObserver(async (changes, observer) => {
            const image = changes.flatMap(change => [...change.addedNodes]).find(node => node.nodeName === 'IMG');
            if (!image) return;
            observer.disconnect();
            await image.decode();
            resolve(performance.now() - pressed);
        }).observe(view, {childList: true, subtree: true});
    });
}"""


# What a control shows, and between which ends: a slider's number, the line of a menu, whether a box is checked.
STATE = """e => e.tagName === 'SELECT' ? [e.selectedIndex, 0, e.options.length - 1]
           : e.type === 'checkbox' ? [Number(e.checked), 0, 1]
           : ['now', 'min', 'max'].map(part => Number(e.getAttribute(`aria-value${part}`)))"""
CONTROLS = ".noUi-handle, select, input[type=checkbox]"


def move(control, by: int) -> bool:
    """Take a control one step on (1) or back (-1), a check box to its other state; return whether it moved."""
    now, low, high = control.evaluate(STATE)
    if control.evaluate("e => e.tagName === 'SELECT'"):
        control.select_option(index=min(max(now + by, low), high))
    elif control.get_attribute("type") == "checkbox":
        control.press("Space")
    else:
        control.press("ArrowRight" if by > 0 else "ArrowLeft")
    return control.evaluate(STATE)[0] != now


def redraws(notebook, view, control) -> list[float]:
    """Milliseconds of up to `STEPS` steps of a control: away from its nearer end, and back."""
    now, low, high = control.evaluate(STATE)
    away, found = 1 if now - low < high - now else -1, []
    control.focus()
    for step in range(STEPS):
        notebook.idle()
        view.evaluate(WAIT)
        if move(control, away if step < STEPS // 2 else -away):
            found.append(notebook.page.evaluate("window.redrawn"))
    return [time for time in found if time is not None]


def main(stems: list[str]) -> None:
    """Print the table for some notebooks, or all."""
    print(f"{'notebook':<16} {'control':<24} {'median':>7} {'longest':>8}  ms")
    with tempfile.TemporaryDirectory() as temporary, Lab(Path(temporary)) as lab:
        for stem in stems or [script.stem for script in course.find_scripts()]:
            notebook = lab.notebook(stem)
            for view in notebook.page.locator(".refquant-explorer").all():
                for control in view.locator(CONTROLS).all():
                    found = redraws(notebook, view, control)
                    row = control.locator("xpath=ancestor::*[contains(@class, 'widget-inline-hbox')][1]")
                    label = row.locator("label, .widget-label").filter(has_text=re.compile(r"\w")).first.inner_text()
                    if found:  # a control may have nothing to say, as the others stand
                        print(f"{stem:<16} {label:<24} {statistics.median(found):7.0f} {max(found):8.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
