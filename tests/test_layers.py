"""Who may import whom, read from the source; what must stay light; and that nothing global happens on import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae

ROOT = Path(pyrovae.__file__).parent
LADDER: dict[str, set[str]] = {
    "seeding": set(),
    "failures": set(),
    "results": set(),
    "compiled": set(),
    "data": {"seeding"},
    "inference": set(),
    "models": {"seeding"},
    "training": {"seeding", "failures", "models", "compiled", "inference"},
    "target": {"seeding", "failures"},
    "diagnostics": {"seeding", "results", "inference", "target", "compiled"},
    "reporting": {"results"},
}
SIBLINGS = {
    "audit": {
        *("calibration", "comparison", "decomposition", "evidence", "evidence_table", "gaps", "options"),
        "reference",
    },
    "calibration": {"reference", "simulated", "two_sample"},
    "comparison": {"evidence", "reference", "two_sample"},
    "evidence": {"gaussians", "options"},
    "evidence_table": {"evidence", "reference"},
    "gaps": {"evidence", "evidence_table", "gaussians"},
    "gradients": {"evidence", "options", "reference"},
    "gaussians": set(),
    "simulated": set(),
    "decomposition": {"evidence", "reference"},
    "reconstruction": set(),
    "options": set(),
    "reference": {"evidence", "gaussians", "options"},
}


def modules() -> list[Path]:
    return sorted(
        path for path in ROOT.rglob("*.py") if path.stem != "__main__" and path.parent.stem != "cli"
    )


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, type-checking imports and imports inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def forbidden(path: Path, names: set[str]) -> set[str]:
    """The imports of a file that the ladder does not allow."""
    home = room(path)
    ours = {name.split(".")[1] for name in names if name.startswith("pyrovae.")}
    wrong = ours - LADDER[home] - {home}
    if home == "diagnostics":
        own = path.relative_to(ROOT).with_suffix("").parts[1]
        inside = {name.split(".")[2] for name in names if name.startswith("pyrovae.diagnostics.")}
        wrong |= inside - SIBLINGS.get(own, set()) - {own}
        training = {name for name in names if name.startswith("pyrovae.training.")}
        if own == "gradients" and all(name.split(".")[2] == "objectives" for name in training):
            wrong -= {"training"}
    if home == "inference" and any(name.split(".")[0] == "pyro" for name in names):
        wrong.add("pyro")
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_ladder(path):
    if path.parent == ROOT and path.stem == "__init__":
        return
    assert not forbidden(path, imports(path))


def test_the_ladder_sees_what_it_must():
    """Planted: a diagnostic that imports training, an estimator that imports Pyro, a sibling that is not allowed."""
    assert forbidden(ROOT / "diagnostics" / "evidence.py", {"pyrovae.training.fit"}) == {"training"}
    gradients = ROOT / "diagnostics" / "gradients" / "own.py"
    assert forbidden(gradients, {"pyrovae.training.objectives.path", "pyrovae.training.fit"}) == {"training"}
    assert not forbidden(gradients, {"pyrovae.training.objectives.path"})
    assert forbidden(ROOT / "inference" / "hmc.py", {"pyro.distributions"}) == {"pyro"}
    assert forbidden(ROOT / "diagnostics" / "evidence.py", {"pyrovae.diagnostics.audit"}) == {"audit"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", ["pyrovae", "pyrovae.cli", "pyrovae.results", "pyrovae.results.summary"])
def test_light_modules_do_not_import_torch(module):
    assert python(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"


def test_importing_everything_changes_nothing_global():
    code = """
import random, warnings, logging
import numpy, torch, pyro
def state():
    return (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.distributions.Distribution._validate_args, pyro.infer.util.is_validation_enabled(),
            len(pyro.get_param_store()), list(logging.getLogger().handlers), random.getstate(),
            torch.is_grad_enabled(), len(numpy.random.get_state()))
before = state()
import pyrovae as pv
for name in pv.__all__:
    getattr(pv, name)
print(before == state())
"""
    assert python(code).strip() == "True"


def test_every_public_name_is_there():
    for name in pyrovae.__all__:
        assert getattr(pyrovae, name) is not None
    with pytest.raises(AttributeError, match="no name 'nonsense'; it has"):
        _ = pyrovae.nonsense
