"""Operate the course's notebooks in a real JupyterLab, as a reader would: with the keyboard and the mouse.

    def test_slider(opened):                      # opened: the notebook of the test's module, run from top to bottom
        view = opened.explorer(0)                 # the first widget that `refquant.widgets.explorer` made
        opened.slide("bits", 3)
        opened.shows(view, figures.draw(bits=7))  # the figure and the text that the package makes of it

`python tests/browser/lab.py 02_rounding FOLDER` takes screenshots: 1280 and 900 pixels wide, light and dark.
The programs are playwright's driver and a Chromium: the one that the variable REFQUANT_CHROMIUM names, or one on PATH.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import jupyterlab
import numpy as np
from PIL import Image

from refquant import course
from refquant.figures import style

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
RUN_SECONDS = 180  # a whole notebook, on a busy machine
NOISE = ("ResizeObserver loop",)  # Chromium's own remark on a busy page; nothing failed


def chromium() -> str:
    """Path of the browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("REFQUANT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert found, "no Chromium: apt-get install chromium, or set REFQUANT_CHROMIUM"
    return found


class Lab:
    """A JupyterLab server over a copy of the notebooks in `folder`, and a browser."""

    def __init__(self, folder: Path):
        self.folder, self.token = Path(folder), os.urandom(16).hex()
        self.open: dict[str, Notebook] = {}

    def __enter__(self):
        work = self.folder / "notebooks"
        shutil.copytree(course.folder(), work, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for name, values in SETTINGS.items():
            path = self.folder / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        prefix = Path(jupyterlab.__file__).parents[4]  # not sys.prefix where one environment lies on another
        share = prefix / "share" / "jupyter"
        environment = (
            course.ENVIRONMENT
            | os.environ
            | {
                "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
                "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
                "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
                "JUPYTER_CONFIG_PATH": str(prefix / "etc" / "jupyter"),
                "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
                "JUPYTER_PATH": str(share),
                "JUPYTERLAB_DIR": str(share / "lab"),
            }
        )
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={work}"]
        command += ["--LabApp.expose_app_in_browser=True", "--ServerApp.port_retries=0"]
        self.log = open(self.folder / "server.log", "wb")
        self.server = subprocess.Popen(command, cwd=work, env=environment, stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{port}"
        self._wait_for_server()
        from playwright.sync_api import sync_playwright  # of the extra `browser`; the default run only collects

        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        return self

    def _wait_for_server(self):
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=5):
                    return
            except OSError:
                if self.server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.folder / "server.log").read_text()) from None
                time.sleep(0.3)

    def __exit__(self, *_):
        self.browser.close()
        self.playwright.stop()
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.log.close()

    def notebook(self, stem: str) -> "Notebook":
        """Open a notebook and run it, once; the same page afterwards. Others are closed, with their kernels."""
        if stem not in self.open:
            for name in list(self.open):
                self.open.pop(name).close()
            self.open[stem] = Notebook(self, stem)
        return self.open[stem]


class Notebook:
    """A notebook in a tab of its own, executed in a fresh kernel."""

    def __init__(self, lab: Lab, stem: str, run: bool = True):
        self.stem, self.trouble = stem, []
        self.context = lab.browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.trouble.append(f"page: {error}"))
        self.page.on("console", self._heard)
        self.page.goto(f"{lab.url}/doc/tree/{stem}.ipynb?token={lab.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(f"{PANEL} && {PANEL}.sessionContext.session?.kernel?.status === 'idle'")
        if run:
            self.run_all()

    def _heard(self, message):
        if message.type == "error" and not any(noise in message.text for noise in NOISE):
            self.trouble.append(f"console: {message.text} ({message.location.get('url', '')})")

    def run_all(self):
        """Run every cell from top to bottom, and wait until the last has finished."""
        assert self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        self.page.wait_for_function(
            f"""() => {PANEL}.sessionContext.session.kernel.status === 'idle' &&
            [...{PANEL}.content.model.cells].every(c => c.type !== 'code' || !c.sharedModel.source
                                                   || c.executionCount !== null)""",
            timeout=1000 * RUN_SECONDS,
        )
        self.check()

    def idle(self):
        """Wait until the kernel has answered everything that a widget asked of it."""
        for _ in range(2):  # a control moved while the kernel was busy sends its last value only afterwards
            self.page.wait_for_timeout(100)
            self.page.evaluate(f"{PANEL}.sessionContext.session.kernel.requestKernelInfo().then(() => true)")
            self.page.wait_for_function(f"{PANEL}.sessionContext.session.kernel.status === 'idle'")
        self.page.wait_for_timeout(50)

    def check(self):
        """Nothing went wrong: no error in a cell, nothing on standard error, no complaint in the console."""
        outputs = self.page.evaluate(f"{PANEL}.content.model.sharedModel.toJSON().cells.flatMap(c => c.outputs || [])")
        wrong = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
        assert not wrong, wrong
        broken = self.page.locator("text=/Error displaying widget|Error creating widget|Failed to load model/").count()
        assert not broken, "a widget that JupyterLab cannot show"
        assert not self.trouble, self.trouble

    def close(self):
        """Stop the kernel and close the page."""
        self.page.evaluate(f"{PANEL}.sessionContext.shutdown()")
        self.context.close()

    # ---- widgets

    def control(self, label: str, inside=None, kind: str = ".widget-inline-hbox"):
        """The ipywidgets control whose label reads exactly `label` (in the view `inside`, or in the whole page)."""
        labels = (
            (inside or self.page)
            .locator(kind)
            .filter(has=self.page.locator("label, .widget-label").filter(has_text=_exactly(label)))
        )
        return labels.last  # the innermost

    def explorer(self, number: int):
        """The `number`-th view made by `refquant.widgets.explorer.explore`."""
        return self.page.locator(".refquant-explorer").nth(number)

    def text(self, view) -> str:
        """The line under an explorer's figure; the figure's own text must be the same."""
        self.idle()
        line = view.locator(".refquant-line p[role=status]").inner_text()
        assert view.locator("img").first.get_attribute("alt") == line
        return line

    def shows(self, view, drawn):
        """Check that an explorer shows `drawn`, a figure and its text, pixel by pixel.

        A slider's 0.85 may differ from Python's in its last bit, and so a few pixels in their shade.
        """
        figure, text = drawn
        assert self.text(view) == text
        shown = view.locator("img").first.get_attribute("src").partition("base64,")[2]
        shown, expected = (_pixels(data) for data in (base64.b64decode(shown), style.png(figure)))
        assert shown.shape == expected.shape
        assert np.mean(shown != expected) < 5e-5, f"another figure, in {np.mean(shown != expected):.2%} of its numbers"

    def slide(self, label: str, steps: int, inside=None):
        """Move a slider by `steps` with the arrow keys: what a reader without a mouse does."""
        handle = self.control(label, inside).locator(".noUi-handle")
        handle.focus()
        for _ in range(abs(steps)):
            handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
        self.idle()

    def drag(self, label: str, share: float, inside=None):
        """Drag a slider's handle with the mouse to `share` (0..1) of its length."""
        control = self.control(label, inside)
        control.scroll_into_view_if_needed()
        handle, bar = control.locator(".noUi-handle").bounding_box(), control.locator(".noUi-target").bounding_box()
        mouse = self.page.mouse
        mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        mouse.down()
        mouse.move(bar["x"] + share * bar["width"], bar["y"] + bar["height"] / 2, steps=8)
        mouse.up()
        self.idle()

    def shown(self, label: str, inside=None) -> str:
        """What a slider's readout says."""
        return self.control(label, inside).locator(".widget-readout").inner_text()

    def choose(self, label: str, option: str, inside=None):
        """Choose from a menu."""
        self.control(label, inside).locator("select").select_option(label=option)
        self.idle()

    def tick(self, label: str, inside=None):
        """Tick or clear a box with the space bar."""
        box = self.page.get_by_role("checkbox", name=label) if inside is None else inside.get_by_label(label)
        box.focus()
        box.press("Space")
        self.idle()

    def play(self, view):
        """Press the play button of a view."""
        view.locator(".widget-play button, .jupyter-widget-play button").first.click()

    def wait_for(self, view, said: str, seconds: float = 90):
        """Wait until the line under an explorer's figure contains `said`."""
        line = view.locator(".refquant-line p[role=status]").filter(has_text=said)
        line.wait_for(timeout=1000 * seconds)
        self.idle()

    def answer_quiz(self, questions):
        """Choose every answer of every question, and check that the feedback is the one written for it."""
        views = self.page.locator(".refquant-question")
        assert views.count() == len(questions)
        for number, question in enumerate(questions):
            view = views.nth(number)
            for answer, reply in question.answers:
                view.get_by_label(answer, exact=True).check()
                self.idle()
                said = view.locator(".refquant-reply p").inner_text()
                assert reply in said
                assert ("Right." in said) == (answer == question.right[0])

    # ---- pictures

    def screenshots(self, folder: Path) -> list[Path]:
        """Pictures of the whole notebook, in pieces of 1600 pixels: 1280 and 900 wide, light and dark."""
        made = []
        for theme in ("light", "dark"):
            name = f"JupyterLab {theme.capitalize()}"
            self.page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
            for width in (1280, 900):
                self.page.set_viewport_size({"width": width, "height": 900})
                self.page.wait_for_timeout(1500)
                self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
                height = self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight") + 120
                self.page.set_viewport_size({"width": width, "height": height})
                self.page.wait_for_timeout(1000)
                self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
                for piece, top in enumerate(range(0, height, 1600)):
                    path = Path(folder) / f"{self.stem}-{theme}-{width}-{piece}.png"
                    clip = {"x": 0, "y": top, "width": width, "height": min(1600, height - top)}
                    self.page.screenshot(path=path, clip=clip)
                    made.append(path)
        return made


PANEL = "window.jupyterapp?.shell.currentWidget"


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _exactly(label: str):
    return re.compile(rf"^\s*{re.escape(label)}\s*$")


def questions_of(stem: str):
    """The `questions` that the last cell of a notebook's script gives to `quiz`."""
    names: dict = {}
    exec(course.read_script(course.find_scripts([stem])[0]).cells[-1].source, names)
    return names["questions"]


if __name__ == "__main__":
    stem, folder = sys.argv[1:3]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Lab(Path(temporary)) as running:
        for made in running.notebook(stem).screenshots(Path(folder)):
            print(made)
