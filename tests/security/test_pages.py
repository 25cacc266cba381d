"""report.html and comparison.html of runs and data whose every name is an attack: the pages are
built of the same tags.
"""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from browser import needs_chromium, opened
from coco_files import coco, image

from groundtune.data.formats.detect import load_splits
from groundtune.model.bundle import ModelBundle
from groundtune.report.build import build_report
from groundtune.report.compare import build_comparison

ATTACKS = [
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "</title></style></textarea><img src=x onerror=hacked=1>",
    '"><svg onload=hacked=1>',
    "' onmouseover='hacked=1' x='",
    '" autofocus onfocus="hacked=1" x="',
    "javascript:hacked=1",
    "&lt;script&gt;hacked=1&lt;/script&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- --><![CDATA[",
    "\u202e\u2066\ufeff\u0000<scr\u0131pt>",
    "\uff1cscript\uff1ehacked=1",
]
PLAIN = [f"name {letter}" for letter in "abcdefghijkl"]


class Tags(HTMLParser):
    """Every tag with the names of its attributes, and where its addresses lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *sorted(name for name, _ in attributes)))
        leading = ("src", "href", "action", "style")
        self.addresses += [value or "" for name, value in attributes if name in leading]


def make_run(root: Path, names: list[str]) -> Path:
    """A finished run; the names are those of classes, files, options, packages, other data sets,
    and the values of them.
    """
    files = [f"{number} {name}.png".replace("/", "∕").replace("\0", "") for number, name in enumerate(names)]
    for split in ("train", "valid"):
        for name in files:
            image(root / "data" / split / name)
        boxes = [(i, i, [1, 2, 10, 12]) for i in range(1, len(names) + 1)]
        content = coco(files, boxes, list(enumerate(names, 1)))
        (root / "data" / split / "_annotations.coco.json").write_text(json.dumps(content))
    run = root / f"run {names[3]}".replace("/", "∕")
    run.mkdir()
    by_name = {name: name for name in names}
    options = {"data": f"data/{names[0]}", "model": names[1], "epochs": 2, "note": names}
    (run / "config.yaml").write_text(yaml.safe_dump(options | by_name))
    (run / "env.json").write_text(json.dumps({"command": " ".join(names)} | by_name))
    rates = {name.replace("=", ""): 1e-4 for name in names}
    lines = [{"step": s, "epoch": s, "loss": 1 / s, "lr": rates, "valid/AP": s / 10} for s in (1, 2, 3)]
    lines += [{"step": s, "epoch": s, "loss": 1 / s, "lr": rates} for s in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    valid = load_splits(root / "data")["valid"]
    scores = {name: {"AP": 0.4, "AP50": 0.75} for name in names}
    summary = {when: {"valid/AP": ap} for when, ap in (("best", 0.3), ("final", 0.3), ("zero_shot", 0.1))}
    summary |= {"per_class": scores}
    summary |= {"retained": {name: {"before": {"AP": 0.5}, "after": {"AP": 0.4}} for name in names}}
    (run / "metrics.json").write_text(json.dumps(summary | {"seconds": 1.0, "valid_images": len(names)}))
    box = {"category_id": valid.category_ids[0], "bbox": [1, 2, 10, 12]}
    found = [
        box | {"image_id": s.image_id, "score": 0.9 - 0.05 * place} for place, s in enumerate(valid.samples)
    ]
    (run / "predictions_valid.json").write_text(json.dumps(found))
    return run


def pages(root: Path, names: list[str]) -> dict[str, str]:
    run = make_run(root, names)
    other = Path(shutil.copytree(run, root / f"other {names[4]}".replace("/", "∕")))
    (other / "config.yaml").write_text((run / "config.yaml").read_text().replace("epochs: 2", "epochs: 3"))
    build_comparison([run, other], root / "c.html")
    report = build_report(run, load_splits(root / "data"), 500).read_text(encoding="utf-8")
    return {"report": report, "comparison": (root / "c.html").read_text(encoding="utf-8")}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> dict[str, str]:
    return pages(tmp_path_factory.mktemp("attacked"), ATTACKS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, str]:
    return pages(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_attacks_change_no_tag_and_lead_nowhere(attacked, plain, name: str) -> None:
    hostile, benign = Tags(attacked[name]), Tags(plain[name])
    assert sorted(hostile.found) == sorted(benign.found) and len(benign.found) > 50
    assert all(re.match(r"data:|--share:|margin-top:|color:", address) for address in hostile.addresses)
    assert "49{%" not in attacked[name] and "{{ 7 * 7 }}" in attacked[name]


def test_no_script_runs_but_the_pages_own(attacked) -> None:
    nonces = set()
    for page in attacked.values():
        [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
        [nonce] = re.findall(r"script-src 'nonce-(\w{32})'", policy)
        assert page.count("<script") == page.count(f'<script nonce="{nonce}">') == 1
        assert "unsafe-eval" not in policy and policy.count("unsafe-inline") == 1  # of styles
        nonces.add(nonce)
    assert len(nonces) == 2


@needs_chromium
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_attacks_do_nothing_in_a_browser(attacked, tmp_path: Path, name: str) -> None:
    script = """
    for (const node of document.querySelectorAll("*")) {
      for (const kind of ["mouseover", "focus", "click"]) if (node.tagName !== "TH") node.dispatchEvent(new Event(kind));
      if ([...node.attributes].some(own => own.name.startsWith("on"))) result.handler = node.outerHTML;
    }
    result.scripts = document.scripts.length;
    """
    assert opened(attacked[name], script, tmp_path, 1280) == {"scripts": 2}


def test_a_model_card_keeps_its_front_matter(tmp_path: Path) -> None:
    """The base's name comes out of a file; the Hub reads the part between the dashes."""
    from small_models import small_bundle

    from groundtune.model.checkpoint.save import save_bundle

    bundle: ModelBundle = small_bundle(tmp_path)
    bundle.base_model = "a/b\nlicense: mit\n---\n<script>hacked=1</script>"
    bundle.classes = ["cat"]
    save_bundle(bundle, tmp_path / "m")
    card = (tmp_path / "m/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == bundle.base_model and front["license"] == "other"
