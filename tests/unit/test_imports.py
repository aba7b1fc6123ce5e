"""The house rules of CONTRIBUTING.md that a syntax tree can tell."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import instructedit

PACKAGE = Path(instructedit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: A package may import from packages of a lower rank, and from itself; a module listed by itself has its own rank.
RANKS = {
    **dict.fromkeys(("records", "errors", "threads", "storage", "assets", "artifacts"), 0),
    **dict.fromkeys(("data", "endpoints", "instructions.grammar"), 1),
    "instructions.templates": 2,
    "tasks": 3,
    "models": 4,
    "deltas": 5,
    "editors": 6,
    **dict.fromkeys(("training", "evaluation", "merging"), 7),
    **dict.fromkeys(("experiments", "instructions", "analysis", "base_model", "export", "ledger"), 8),
    "cli": 9,
    **dict.fromkeys(("", "__main__"), 10),
}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MODEL_NAMES = {"model_type", "name_or_path", "_name_or_path", "architectures"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
every_module = pytest.mark.parametrize("module", MODULES)


def package(module: str) -> str:
    """The part of the package that a module's rank is of."""
    inside = module.partition(".")[2]
    return inside if inside in RANKS else inside.partition(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("instructedit"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module is not None and node.module.startswith("instructedit"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in MODULES else node.module


def upward(module: str, tree: ast.AST) -> list[str]:
    """Imports that do not run downward."""
    return [
        found
        for found in imported(tree)
        if package(found) != package(module) and not RANKS[package(module)] > RANKS[package(found)]
        if not RANKS[package(module)] == RANKS[package(found)] == 0
    ]


def printing(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


#: Where any exception is caught, once: what loading libraries raise for a damaged file has no common type.
BOUNDARY = "instructedit.models.checkpoint"


def catching_everything(tree: ast.AST) -> list[int]:
    def names(handler: ast.ExceptHandler) -> list[str]:
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        return [node.id if isinstance(node, ast.Name) else "" for node in caught]

    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(names(node)))
    ]


def refuses_code(call: ast.Call) -> bool:
    """Whether ``trust_remote_code=False`` stands in a call."""
    return any(
        key.arg == "trust_remote_code" and isinstance(key.value, ast.Constant) and key.value.value is False
        for key in call.keywords
    )


def reads_tensors_alone(call: ast.Call) -> bool:
    """Whether ``weights_only=True`` stands in a call."""
    return any(
        key.arg == "weights_only" and isinstance(key.value, ast.Constant) and key.value.value is True
        for key in call.keywords
    )


def unpickling(tree: ast.AST) -> list[int]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [node.lineno for alias in node.names if alias.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.lineno] if (node.module or "").split(".")[0] in PICKLERS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            safe = any(
                (key.arg == "use_safetensors" and isinstance(key.value, ast.Constant) and key.value.value is True)
                or key.arg == "gguf_file"  # no pickle either
                for key in node.keywords
            )
            loads_model = called.endswith(".from_pretrained") and "Model" in called
            if (
                called in {"yaml.load", "yaml.unsafe_load"}
                or (called == "torch.load" and not reads_tensors_alone(node))
                or (loads_model and not safe)
                or (called.endswith((".from_pretrained", ".from_config")) and not refuses_code(node))
            ):
                found.append(node.lineno)
        if isinstance(node, ast.Call):
            given = {key.arg for key in node.keywords}
            if "allow_pickle" in given or ("trust_remote_code" in given and not refuses_code(node)):
                found.append(node.lineno)
    return found


def asking_for_model_names(tree: ast.AST) -> list[int]:
    """Any use of a model's name or type; a class name may stand in a message but not in a comparison."""
    found = []
    for node in ast.walk(tree):
        named = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        if isinstance(named, str) and named in MODEL_NAMES:
            found.append(node.lineno)
        if isinstance(node, ast.Compare):
            attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            found += [node.lineno] if attributes & {"__name__", "__qualname__"} else []
    return found


def test_every_file_is_looked_at() -> None:
    assert {"instructedit.models.split", "instructedit.cli.app", "instructedit"} <= MODULES.keys()


@every_module
def test_imports_run_downward(module: str) -> None:
    assert package(module) in RANKS, f"{package(module)} is a new package: give it a rank"
    assert upward(module, MODULES[module]) == []


def test_no_circle() -> None:
    graph = {module: set(imported(tree)) - {module} for module, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_no_utils_module() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}


@every_module
@pytest.mark.parametrize("rule", [printing, catching_everything, unpickling, asking_for_model_names])
def test_rule_is_kept(module: str, rule: Callable[[ast.AST], list[int]]) -> None:
    if (rule, module) in {
        (printing, "instructedit.cli.console"),
        (asking_for_model_names, "instructedit.export.gguf_files"),  # the format names the architecture
        # torch.load raises what pickle raises, whose module is not imported here.
        (catching_everything, "instructedit.editors.easyedit"),
        (catching_everything, "instructedit.cli.app"),  # the boundary: a user gets words and an exit code
    }:
        return
    if rule is catching_everything and module == BOUNDARY:
        assert len(rule(MODULES[module])) == 1
        return
    assert rule(MODULES[module]) == [], f"lines of {module}"


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (printing, "print('x')"),
        (catching_everything, "try:\n    f()\nexcept:\n    pass"),
        (catching_everything, "try:\n    f()\nexcept (OSError, Exception):\n    pass"),
        (unpickling, "import pickle"),
        (unpickling, "from joblib import load"),
        (unpickling, "torch.load(path)"),
        (unpickling, "torch.load(path, weights_only=False)"),
        (unpickling, "AutoModel.from_pretrained(path)"),
        (unpickling, "AutoModel.from_pretrained(path, trust_remote_code=False)"),
        (unpickling, "AutoModel.from_pretrained(path, use_safetensors=True)"),
        (unpickling, "AutoTokenizer.from_pretrained(path)"),
        (unpickling, "AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)"),
        (unpickling, "AutoModelForCausalLM.from_config(config)"),
        (unpickling, "pipeline(path, trust_remote_code=True)"),
        (unpickling, "AutoConfig.from_pretrained(path, trust_remote_code=True)"),
        (asking_for_model_names, "if config.model_type == 'gpt2': pass"),
        (asking_for_model_names, "kind = getattr(config, 'name_or_path')"),
        (asking_for_model_names, "if type(model).__name__ == 'OPTModel': pass"),
    ],
)
def test_rule_sees_its_breach(rule: Callable[[ast.AST], list[int]], source: str) -> None:
    assert rule(ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("instructedit.models.text", "from instructedit.deltas.delta import Delta"),
        ("instructedit.records", "def f():\n    import instructedit.tasks.task"),
        ("instructedit.training.loop", "from instructedit.evaluation import metrics"),
    ],
)
def test_upward_import_is_seen(module: str, source: str) -> None:
    assert upward(module, ast.parse(source))


def test_public_names_are_there() -> None:
    assert sorted(instructedit.__all__) == list(instructedit.__all__)
    for name in instructedit.__all__:
        assert getattr(instructedit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = instructedit.nonsense
