"""Imports point downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up: a module may import from its own layer and from those before it.
LAYERS = [
    ["agl_core.errors", "agl_core.files", "agl_core.machine", "agl_core.compiled", "agl_core.opencv"],
    ["agl_core.config", "agl_core.geometry"],
    ["agl_core.reporting"],
    ["agl_core.data"],
    ["agl_core.world"],
    ["agl_core.scoring"],
    ["agl_core.model"],
    ["agl_core.durable"],
    ["agl_core.inference"],
    ["agl_core.maps"],
    ["agl_core.export"],
    ["agl_core.training"],
    ["agl_core.validate"],
    ["jobs"],
    ["launch"],
]
MODULES = sorted([ROOT / "launch.py", *(ROOT / "agl_core").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return 0 if module == "agl_core" or module.startswith("agl_core.recipes") else None


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.append(node.module)
    return [name for name in names if name.split(".")[0] in ("agl_core", "jobs", "launch", "tests", "benchmarks")]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_its_layer_or_below(path: Path) -> None:
    own = layer(module_name(path))
    assert own is not None, f"{module_name(path)} is in no layer: give it one in this file"
    for name in imported(path):
        other = layer(name)
        assert other is not None, f"{module_name(path)} imports {name}, which is in no layer"
        assert other <= own, f"{module_name(path)} imports {name}, which lies above it"


@pytest.mark.parametrize("path", [p for p in MODULES if module_name(p).startswith("agl_core")], ids=module_name)
def test_the_library_knows_nothing_of_clusters(path: Path) -> None:
    source = path.read_text()
    assert "submitit" not in source
    assert "SLURM" not in source


@pytest.mark.parametrize("path", [p for p in MODULES if module_name(p).startswith("jobs")], ids=module_name)
def test_the_jobs_know_nothing_of_tensors(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("torch", "timm", "segmentation_models_pytorch")]


@pytest.mark.parametrize(
    "module", ["launch", "jobs.conductor", "jobs.rank", "jobs.submitted", "jobs.status", "jobs.logs"]
)
def test_what_must_be_there_at_once_does_not_wait_for_torch(module: str) -> None:
    heavy = "torch", "numpy", "rasterio", "timm"
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_one_command_stays_short() -> None:
    assert len((ROOT / "launch.py").read_text().splitlines()) < 100
