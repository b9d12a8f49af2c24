"""How long a reader waits: `python tests/browser/redraw.py [02_rounding ...]` moves every slider of the notebooks.

One line a slider: milliseconds from the key press to the new figure, decoded and ready for the screen, in Chromium: the
median and the longest of a few steps. The target is 200 on two cores. A measurement, not a test: it depends on what
else the machine does.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from lab import Lab

from refquant import course

STEPS = 8
# Resolves with the milliseconds between the next key and the picture that it brings; null where none comes.
WAIT = """view => {
    let pressed;
    document.addEventListener('keydown', () => { pressed = performance.now() }, {capture: true, once: true});
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


def redraws(notebook, view, handle) -> list[float]:
    """Milliseconds of `STEPS` steps of a slider: to its end or half of the steps, and back."""
    now, low, high = (float(handle.get_attribute(f"aria-value{part}")) for part in ("now", "min", "max"))
    keys = ("ArrowRight", "ArrowLeft") if now - low < high - now else ("ArrowLeft", "ArrowRight")
    found = []
    handle.focus()
    for step in range(STEPS):
        notebook.idle()
        view.evaluate(WAIT)
        before = handle.get_attribute("aria-valuenow")
        handle.press(keys[2 * step // STEPS])
        if handle.get_attribute("aria-valuenow") != before:
            found.append(notebook.page.evaluate("window.redrawn"))
    return [time for time in found if time is not None]


def main(stems: list[str]) -> None:
    """Print the table for some notebooks, or all."""
    print(f"{'notebook':<16} {'slider':<24} {'median':>7} {'longest':>8}  ms")
    with tempfile.TemporaryDirectory() as temporary, Lab(Path(temporary)) as lab:
        for stem in stems or [script.stem for script in course.find_scripts()]:
            notebook = lab.notebook(stem)
            for view in notebook.page.locator(".refquant-explorer").all():
                for handle in view.locator(".noUi-handle").all():
                    name = handle.locator("xpath=ancestor::*[contains(@class, 'widget-inline-hbox')][1]")
                    found = redraws(notebook, view, handle)
                    label = name.locator(".widget-label").first.inner_text()
                    if found:  # a slider may have nothing to say, as other controls stand
                        print(f"{stem:<16} {label:<24} {statistics.median(found):7.0f} {max(found):8.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
