"""The page of `groundtune demo`: somebody drops an image, names things, and sees where they are.

The network runs once for an image and its names. Everything above a low score goes to the browser with the image, as one
piece of HTML (`answer.html.jinja`); its sliders and the JSON file are a few lines of script there (`answer.js`), so that
nobody who moves a slider takes time from the others. Gradio brings the page, the upload, and the queue.

One thread computes for everybody, whoever asked: a network works on one image at a time, and torch keeps a team of threads
for every thread that it was called from. The page asks nobody but this server: no statistics, no fonts, no scripts.
"""

import importlib.util
import os
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from PIL import Image

from groundtune.data.images import data_uri, load_image, thumbnail
from groundtune.errors import ConfigError, GroundtuneError
from groundtune.model.bundle import ModelBundle
from groundtune.predict.predictor import Predictor
from groundtune.predict.writers import COLORS, records_of

if TYPE_CHECKING:
    from gradio import Blocks


LOWEST_SCORE = 0.05
MOST_NAMES = 100
"""Names at a time: every prompt of the model that they fill is a pass of its own, and the others wait."""

_SIDE = 1600  # pixels of the shown image's longer side; boxes are drawn in the original's
_WAITING, _AT_ONCE = 32, 4
_FOLDER = Path(__file__).parent
_PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("answer.html.jinja")


@dataclass
class Demo:
    """Models that look for the same names in the same image; the base before its child.

    Attributes:
        models: what they are called on the page, and the models.
        device: where to compute.
        precision: "fp32" or "bf16".
        threshold: the score at which the sliders stand at first.
    """

    models: dict[str, ModelBundle]
    device: torch.device
    precision: str
    threshold: float
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def answer(self, path: str | None, chips: Sequence[str] | None) -> tuple[str, list[str]]:
        """What the page shows: the image with everything found, or what is wrong with it or with the names.

        Args:
            path: the image's file; None where there is none yet.
            chips: names to look for, or several of them with commas between.

        Returns:
            HTML without anything that a name or a file could make the browser run; and the names, one a chip.
        """
        names = list(
            dict.fromkeys(name for chip in chips or () for name in re.split(r"\s*,\s*", chip.strip()) if name)
        )
        shown: dict[str, Any] = {
            "problem": "",
            "images": [{}],
            "threshold": max(self.threshold, LOWEST_SCORE),
            "lowest": LOWEST_SCORE,
        }
        try:
            if path is None:
                raise ConfigError("There is no image yet. Drop one into the field, or click there.")
            image = load_image(Path(path))
            shown |= {
                "width": image.width,
                "height": image.height,
                "image": data_uri(thumbnail(image.copy(), _SIDE, 85)),
            }
            if not names:
                raise ConfigError(
                    "There is nothing to look for yet. Type a name, such as cat, and press Enter."
                )
            if len(names) > MOST_NAMES:
                raise ConfigError(
                    f"{len(names)} names are more than this page looks for at a time, which is {MOST_NAMES}; take some away. "
                    "`groundtune predict` takes any number."
                )
            found = self._thread.submit(self._find, image, names).result()
            images = [
                {"image": Path(path).name, "model": model, "detections": part}
                for model, part in found.items()
            ]
            colors = [COLORS.by_idx(place).as_hex() for place in range(len(names))]
            shown |= {"found": {"classes": names, "images": images}, "images": images, "colors": colors}
        except GroundtuneError as error:
            shown["problem"] = str(error) if path is None else str(error).replace(path, Path(path).name)
        return _PAGE.render(shown), names

    def _find(self, image: Image.Image, names: list[str]) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for model, bundle in self.models.items():
            [part] = Predictor(bundle, names, self.device, LOWEST_SCORE, precision=self.precision).find(
                [image]
            )
            found[model] = records_of(part)
        return found


def need_gradio() -> None:
    """Refuse early where the extra is missing; a `ConfigError`."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('gradio is not installed. Install it with: pip install "groundtune[demo]"')


def serve(demo: Demo, names: Sequence[str], host: str, port: int | None, folder: str) -> "Blocks":
    """Start the page, which then runs beside the caller; its `local_url` says where, and `close` ends it.

    Args:
        demo: the models.
        names: what the field of names holds at first.
        host: address to listen at.
        port: None takes the first free one from 7860.
        folder: for images while they are uploaded and looked at; those of an hour ago are deleted.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    # Gradio reads these when it is imported; and it asks itself whether it is up, which no proxy could do.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    import gradio as gr

    names = list(names[:MOST_NAMES])
    with gr.Blocks(
        title="Groundtune", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.Markdown(f"# {' and '.join(map(_plain, demo.models))}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.File(label="Image", height=150)
                told = "Enter after each name; a list with commas is taken apart."
                chips = gr.Dropdown(
                    names, value=names, label="Look for", info=told, multiselect=True, allow_custom_value=True
                )
                button = gr.Button("Find", variant="primary")
            with gr.Column(scale=3, min_width=320):
                answer = gr.HTML(
                    _PAGE.render(),
                    css_template=(_FOLDER / "answer.css").read_text(encoding="utf-8"),
                    js_on_load=(_FOLDER / "answer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="answer",
                )
        gr.on(
            [image.upload, button.click],
            demo.answer,
            [image, chips],
            [answer, chips],
            api_name="find",
            concurrency_limit=_AT_ONCE,
            show_progress_on=answer,
        )
    page.queue(max_size=_WAITING)
    try:
        family = socket.getaddrinfo(host, port or 0)[0][0]
        socket.create_server((host, port or 0), family=family).close()  # Gradio would wait long, and say less
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
        raise ConfigError(f"host, port: cannot listen at {host}:{port or 'a free port'}: {error}.") from error
    return page


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([^\w\s/])", r"\\\1", text)
