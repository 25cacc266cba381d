"""The page of `groundtune demo`: upload an image, name classes, and see the detections.

The network runs once per image and classes. All detections above a low score go to the browser as
HTML (`demo.html.jinja`); its sliders and JSON download are a script (`demo.js`). One thread runs
the networks for all visitors: they take one image at a time, and torch keeps a team of threads per
calling thread. The page loads nothing from other servers.
"""

import importlib.util
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from PIL import Image

from groundtune.data.images import data_uri, load_image, thumbnail
from groundtune.errors import ConfigError, GroundtuneError
from groundtune.model.bundle import ModelBundle
from groundtune.predict.postprocess import Selection
from groundtune.predict.predictor import Predictor
from groundtune.predict.writers import COLORS, records_of
from groundtune.text.prompt import split_names

if TYPE_CHECKING:
    from gradio import Blocks

MIN_SCORE = 0.05
MAX_CLASSES = 100  # per request: more need more passes, while others wait
_MAX_SIDE = 1600  # pixels of the displayed image
_MAX_WAITING, _MAX_REQUESTS = 32, 4
_FOLDER = Path(__file__).parent
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass
class Demo:
    """Models that detect the same classes in the same image."""

    models: dict[str, ModelBundle]  # by their names on the page, the base model first
    device: torch.device
    precision: str
    threshold: float  # initial confidence threshold
    selection: Selection
    known: Sequence[str] = ()  # class names that may hold a separator
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def detect(self, path: str | None, entries: Sequence[str] | None) -> tuple[str, list[str]]:
        """Return the detections or the error as HTML without executable input, and the class names.

        There is no path before the first upload; entries may be lists, as 'cat, dog'.
        """
        names = [name for entry in entries or () for name in split_names(entry, self.known)]
        names = list(dict.fromkeys(names))
        threshold = max(self.threshold, MIN_SCORE)
        values: dict[str, Any] = {"images": [{}], "threshold": threshold, "min_score": MIN_SCORE}
        try:
            if path is None:
                raise ConfigError("There is no image yet. Drop one into the field, or click there.")
            image = load_image(Path(path))
            values |= {"width": image.width, "height": image.height}
            values["source"] = data_uri(thumbnail(image.copy(), _MAX_SIDE, 85))
            if not names:
                raise ConfigError("There are no classes yet. Type a name, such as cat, and press Enter.")
            if len(names) > MAX_CLASSES:
                limit = f"expected at most {MAX_CLASSES}, got {len(names)}"
                fix = "Remove some, or use `groundtune predict`, which has no limit."
                raise ConfigError(f"Classes: {limit}. {fix}")
            found = self._thread.submit(self._detect, image, names).result()
            images = [
                {"image": Path(path).name, "model": model, "detections": records}
                for model, records in found.items()
            ]
            colors = [COLORS.by_idx(index).as_hex() for index in range(len(names))]
            values |= {"results": {"classes": names, "images": images}, "images": images, "colors": colors}
        except GroundtuneError as error:
            values["problem"] = str(error) if path is None else str(error).replace(path, Path(path).name)
        return _TEMPLATES.get_template("demo.html.jinja").render(values), names

    def _detect(self, image: Image.Image, names: list[str]) -> dict[str, list[dict[str, Any]]]:
        records = {}
        for model, bundle in self.models.items():
            predictor = Predictor(
                bundle,
                names,
                self.device,
                threshold=MIN_SCORE,
                thresholds={},
                selection=self.selection,
                sentences=False,
                tiles=None,
                batch_size=1,
                precision=self.precision,
            )
            records[model] = records_of(predictor.find([image])[0])
        return records


def need_gradio() -> None:
    """Raise a `ConfigError` if the extra is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('gradio is not installed. Install it with: pip install "groundtune[demo]"')


def serve(demo: Demo, names: Sequence[str], host: str, port: int | None, folder: str) -> "Blocks":
    """Start the page in the background, at its `local_url`; `close` stops it.

    Without a port the first free one from 7860 is used. Uploads are kept in `folder` for an hour.

    Raises:
        ConfigError: it cannot listen on the address.
    """
    # read when Gradio is imported
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
    import gradio as gr

    page = _build_page(demo, list(names[:MAX_CLASSES]))
    page.queue(max_size=_MAX_WAITING)
    try:
        family = socket.getaddrinfo(host, port or 0)[0][0]
        socket.create_server((host, port or 0), family=family).close()
        with _without_proxy(host):
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                max_file_size="200mb",
                theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )
    except OSError as error:
        raise ConfigError(f"host, port: cannot listen on {host}:{port or 'a free port'}: {error}.") from error
    return page


def _build_page(demo: Demo, names: list[str]) -> "Blocks":
    import gradio as gr

    title = " and ".join(re.sub(r"([^\w\s/])", r"\\\1", name) for name in demo.models)
    info = "Press Enter after each name, or paste a list separated by commas."
    css, js = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("demo.css", "demo.js"))
    html = _TEMPLATES.get_template("demo.html.jinja").render()
    with gr.Blocks(
        title="Groundtune", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.File(label="Image", height=150)
                classes = gr.Dropdown(
                    names, value=names, label="Classes", info=info, multiselect=True, allow_custom_value=True
                )
                button = gr.Button("Detect", variant="primary")
            with gr.Column(scale=3, min_width=320):
                results = gr.HTML(
                    html, css_template=css, js_on_load=js, apply_default_css=False, elem_id="results"
                )
        gr.on(
            [image.upload, button.click],
            demo.detect,
            [image, classes],
            [results, classes],
            api_name="detect",
            concurrency_limit=_MAX_REQUESTS,
            show_progress_on=results,
        )
    return page


@contextmanager
def _without_proxy(host: str) -> Iterator[None]:
    """Let Gradio's check of its own address, at its start, bypass the proxy of the environment."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    bypassed = ",".join(filter(None, [urllib.request.getproxies().get("no"), "localhost", host]))
    os.environ |= {"NO_PROXY": bypassed, "no_proxy": bypassed}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
