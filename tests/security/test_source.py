"""No line of the package, the examples or the benchmarks can run code from a file, by their syntax
trees.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("src", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
NEVER = set(
    """
    eval exec compile __import__ os.system os.popen tempfile.mktemp shutil.unpack_archive
    yaml.unsafe_load yaml.full_load yaml.load_all yaml.UnsafeLoader yaml.FullLoader yaml.Loader
    torch.hub.load torch.package.PackageImporter marshal.loads shelve.open joblib.load runpy.run_path
    pickle.load pickle.loads pickle.Unpickler dill.load dill.loads dill.Unpickler
    cloudpickle.load cloudpickle.loads cloudpickle.Unpickler
    xml.etree.ElementTree.parse xml.etree.ElementTree.iterparse xml.etree.ElementTree.fromstring
    xml.etree.ElementTree.XML
    """.split()
)
ALLOWED = {  # between processes of one user, whose code Ray runs anyway
    "src/groundtune/predict/ray.py": "pickle.loads"
}
NEEDS = {"torch.load": ("weights_only", "True"), "jinja2.Environment": ("autoescape", "True")}


def faults(source: str) -> list[str]:
    """Return the forbidden calls of a module."""
    tree, names, found = ast.parse(source), dict[str, str](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Name | ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and _name(node, names) in NEVER
        ):
            found.append(f"line {node.lineno}: {_name(node, names)}")
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func, names)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        if name in NEEDS and given.get(NEEDS[name][0]) != NEEDS[name][1]:
            found.append(f"line {node.lineno}: {name} without {NEEDS[name]}")
        if name == "yaml.load" and given.get("Loader") not in ("yaml.BaseLoader", "yaml.SafeLoader"):
            found.append(f"line {node.lineno}: yaml.load with any loader")
        if name.rpartition(".")[2] == "extractall" and given.get("filter") != "'data'":
            found.append(f"line {node.lineno}: {name} writes where an archive says")
        loose = {"shell": "False", "allow_pickle": "False", "trust_remote_code": "False"}
        found += [
            f"line {node.lineno}: {key}={given[key]}"
            for key in loose
            if given.get(key, loose[key]) != loose[key]
        ]
    return found


def _name(node: ast.AST, names: dict[str, str]) -> str:
    """Return a dotted name, its first part as it was imported, or "" for other expressions."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    inner = _name(node.value, names) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


@pytest.mark.parametrize(
    "bad",
    [
        "eval(text)",
        "f = exec",
        "import torch as t\nt.load(path)",
        "torch.load(path, weights_only=safe)",
        "from torch import load\nload(path, map_location='cpu')",
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(content)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "from yaml import unsafe_load",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(f'ls {name}', shell=True)",
        "os.system('ls')",
        "with tarfile.open(path) as archive:\n    archive.extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "from xml.etree import ElementTree\nElementTree.parse(path)",
        "jinja2.Environment(loader=loader)",
    ],
)
def test_forbidden_calls_are_found(bad: str) -> None:
    assert faults(bad) or bad == "from yaml import unsafe_load" and faults(f"{bad}\nunsafe_load(text)")


@pytest.mark.parametrize(
    "good",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "re.compile(text)",
        "yaml.load(text, Loader=yaml.BaseLoader)",
        "from defusedxml.ElementTree import fromstring\nfromstring(text)",
        "subprocess.run(['ls', name])",
    ],
)
def test_safe_calls_are_accepted(good: str) -> None:
    assert not faults(good)


def test_the_package_the_examples_and_the_benchmarks_have_none() -> None:
    found = {path.relative_to(ROOT).as_posix(): faults(path.read_text(encoding="utf-8")) for path in FILES}
    lines = [f"{path} {fault}" for path, faults in found.items() for fault in faults]
    assert [line for line in lines if ALLOWED.get(line.split()[0]) != line.split(": ")[1]] == []
    assert {line.split()[0] for line in lines} == set(ALLOWED)
