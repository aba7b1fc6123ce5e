"""The classes of inputs: how each is made, and what uses it."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from fuzz import commands, material, mutate
from fuzz.outcomes import Ran, command
from instructedit.base_model.recipe import load_build_stages
from instructedit.data.readers import read_records
from instructedit.deltas.saving import FORMAT as DELTA
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.editors.editing import read_requests
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import FORMAT as EDITOR
from instructedit.editors.saving import digest_of, load_trained_editor, training_of
from instructedit.endpoints.chat import ChatEndpoint
from instructedit.evaluation.generation import generate
from instructedit.experiments.plan import load_experiment, stages_of
from instructedit.instructions.candidates import Candidate, validation_error
from instructedit.instructions.endpoint_proposer import EndpointProposer
from instructedit.instructions.proposals import ProposalContext
from instructedit.instructions.template_files import write_templates
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import load_language_model
from instructedit.records import EditRequest
from instructedit.storage.checkpoints import FORMAT as CHECKPOINT
from instructedit.storage.checkpoints import load_checkpoint
from instructedit.storage.tensors import pack
from instructedit.tasks.loading import load_task
from instructedit.training.recipe_file import load_stages

REQUEST = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")


@dataclass(frozen=True)
class Target:
    """A class of inputs.

    Attributes:
        name: of the class, and of its folder in ``cases``.
        share: of all inputs.
        make: writes an input: the file's name, and its content.
        use: does with the file what the package does; the working folder is the current one, output goes to ``out``.
    """

    name: str
    share: float
    make: Callable[[random.Random], tuple[str, bytes]]
    use: Callable[[Path], object]


# --- data files


def make_data(rng: random.Random) -> tuple[str, bytes]:
    """Records of a form, spoilt as values, as JSON or as bytes; as an array or as lines."""
    form = rng.choice(list(material.ROWS))
    rows = mutate.tree(rng, material.ROWS[form], rng.choice((0, 1, 1, 2, 4)))
    lines = rng.random() < 0.5 and isinstance(rows, list)
    content = b"\n".join(mutate.as_json(rng, row) for row in rows) if lines else mutate.as_json(rng, rows)
    return f"data.{form}.json", mutate.at_bytes(rng, content) if rng.random() < 0.3 else content


def use_data(path: Path) -> None:
    """Read it, and write what was read as a result would hold it."""
    if ".requests." in path.name:
        found: list[Any] = list(read_requests(path))
    else:
        read_records(path, skip_incomplete=True)
        found = list(read_records(path))
    lines = [json.dumps(each.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) for each in found]
    Path("out/found.jsonl").write_text("\n".join(lines), encoding="utf-8")


# --- YAML

_YAML_SCALARS = (
    "2024-13-45",
    "!!int abc",
    "!!float x",
    "!!binary x",
    "!!timestamp x",
    "!!set {a, b}",
    "!!python/object/apply:os.system ['touch canary']",
    "!!python/object/new:type {args: [x, [], {}]}",
    "!unknown x",
    "1e30",
    ".inf",
    ".nan",
    "0x" + "f" * 5000,
    "1:30:99",
    "9" * 5000,
    "~",
    "yes",
    "&a [*a]",
    "*nowhere",
    "{? [a, b] : c}",
    "[" * 3000,
    '"\\ud800"',
    '"\\0"',
    "2001-01-01",
    "<<",
    "|\n  x",
)


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@functools.cache
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def make_yaml(rng: random.Random) -> tuple[str, bytes]:
    """A recipe, task, experiment, build recipe, bank or direct editor, spoilt."""
    kind = rng.choice(list(material.yaml_texts()))
    text = rng.choice(material.yaml_texts()[kind])
    way = rng.randrange(4)
    if way == 0:
        content = mutate.at_bytes(rng, text.encode())
    elif way == 1:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        head = lines[at].partition(":")[0]
        lines[at] = f"{head}: {rng.choice(_YAML_SCALARS)}"
        content = "\n".join(lines).encode()
    else:
        whole = mutate.tree(rng, _parsed(text), rng.randrange(1, 3))
        content = json.dumps(whole).encode()  # nearly all JSON is YAML
        if way == 2:
            with contextlib.suppress(UnicodeEncodeError):
                content = yaml.dump(whole, Dumper=_DUMPER, allow_unicode=True).encode()
    return f"x.{kind}.yaml", content


def use_yaml(path: Path) -> Ran | None:
    """Read it as what it is, and take from it what a run would."""
    kind = path.name.rsplit(".", 2)[1]
    if kind == "recipe":
        json.dumps([recipe.settings() for recipe in load_stages(path)], allow_nan=False).encode()
    elif kind == "build":
        [recipe.model_dump_json() for recipe in load_build_stages(path)]
    elif kind == "experiment":
        found = load_experiment(path)
        for entry in found.editors.values():
            if entry.recipe is not None:
                stages_of(entry, found.base, 0)
    elif kind == "task":
        task = load_task(path)
        text = task.instructions.render(task.instructions.templates[0], REQUEST.model_copy(update={"label": "x"}))
        json.dumps([task.model_dump(mode="json"), text], ensure_ascii=False).encode()
        task.deciding_kinds(load_task("rename"))
    elif kind == "bank":
        return command("instructions", "show", "--task", "counterfact", "--template-file", str(path))
    else:
        load_editor(path, material.language_model())
    return None


# --- files of tensors

_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def _tensors(data: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors.torch import load

    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])["__metadata__"], load(data)


def _resealed(rng: random.Random, data: bytes, parts: tuple[str, ...]) -> bytes:
    """Another header or other tensors under digests that are right, so that what comes behind them is met."""
    header, tensors = _tensors(data)
    header = {key: text for key, text in header.items() if "sha256" not in key}
    for _ in range(rng.randrange(1, 3)):
        way = rng.randrange(10)
        name = rng.choice(sorted(tensors)) if tensors else "x.a"
        tensor = tensors.get(name, torch.zeros(1, 1))
        if way < 4:
            key = rng.choice(parts)
            if key in header:
                header[key] = mutate.as_json(rng, mutate.tree(rng, _loaded(header[key]))).decode("utf-8", "replace")
        elif way == 4:
            tensors[name] = tensor.to(rng.choice(_DTYPES))
        elif way == 5:
            shapes: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (1, 1), (3, 0), (5, 3), (2, 2, 2), (16, 1))
            tensors[name] = torch.ones(rng.choice(shapes))
        elif way == 6 and tensor.is_floating_point() and tensor.numel():
            tensors[name] = tensor.clone()
            tensors[name].view(-1)[0] = rng.choice((float("nan"), float("inf"), 1e30))
        elif way == 7:
            tensors.pop(name, None)
        elif way == 8:
            tensors[rng.choice(("x", "x.a", "", ".a", ".b", "a.b.c.d", "\u202e.a", name + ".a"))] = tensor.clone()
        else:
            header.pop(rng.choice(sorted(header)), None)
    try:
        return pack(tensors, header)
    except (ValueError, TypeError, AttributeError, UnicodeEncodeError):  # a header that cannot be written
        return mutate.safetensors(rng, data)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _make_tensors(
    name: str, source: Callable[[], Path], parts: tuple[str, ...], form: str
) -> Callable[[random.Random], tuple[str, bytes]]:
    def make(rng: random.Random) -> tuple[str, bytes]:
        data = source().read_bytes()
        way = rng.randrange(5)
        if way == 0:
            return name, mutate.at_bytes(rng, data)
        if way == 1:
            return name, mutate.safetensors(rng, data)
        if way == 2 and rng.random() < 0.1:
            return name, rng.choice((b"", material.PICKLE, b"{}", data * 2, form.encode()))
        return name, _resealed(rng, data, parts)

    return make


def use_delta(path: Path) -> None:
    """Read, compress, add, write, attach and generate."""
    delta = load_delta(path)
    language_model = material.language_model()
    smaller = (delta + delta).compress(1)
    save_delta(smaller, "out/smaller.safetensors")
    load_delta("out/smaller.safetensors")
    delta.check(language_model)
    with delta.attached(language_model):
        pass
    generate(language_model, ["Lena was born in"], delta=delta, new_tokens=1)


def use_editor(path: Path) -> None:
    """Read it and make an edit with it."""
    digest_of(path)
    json.dumps(training_of(path)).encode()
    language_model = material.language_model()
    delta = make_edit(load_trained_editor(path, language_model), language_model, [REQUEST], load_task("counterfact"))
    save_delta(delta, "out/edit.safetensors")


def use_checkpoint(path: Path) -> None:
    """Go on from it for a step."""
    module, optimizer = material.module_and_optimizer()
    progress = load_checkpoint(path, module, [optimizer], material.RECIPE_SETTINGS)
    json.dumps(progress)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()


# --- model folders


def make_model(rng: random.Random) -> tuple[str, bytes]:
    """One file of a model's folder, spoilt."""
    parts = material.parts()
    name = rng.choice(("config.json", "config.json", "model.safetensors", *parts))
    data = parts[name]
    if name.endswith(".safetensors"):
        return name, mutate.safetensors(rng, data)
    if rng.random() < 0.2:
        return name, mutate.at_bytes(rng, data)
    whole = mutate.tree(rng, json.loads(data), rng.randrange(1, 3))
    if name.endswith("config.json") and isinstance(whole, dict) and rng.random() < 0.15:
        maps: dict[str, Any] = {
            "AutoConfig": "payload.C",
            "AutoModelForCausalLM": "payload.M",
            "AutoTokenizer": [None, "payload.T"],
        }
        whole |= {"auto_map": maps, "model_type": rng.choice(("gpt2", "mine"))}
    return name, mutate.as_json(rng, whole)


def make_gguf(rng: random.Random) -> tuple[str, bytes]:
    """A GGUF file, spoilt anywhere or in its header, which is its first half."""
    data = material.gguf_file().read_bytes()
    half = len(data) // 2 if rng.random() < 0.7 else len(data)
    return "model.gguf", mutate.at_bytes(rng, data[:half]) + data[half:]


def use_gguf(path: Path) -> None:
    """Load it, and generate."""
    loaded = load_language_model(path)
    generate(loaded, ["Lena was born in"], new_tokens=2)
    loaded.fingerprint.encode()


def use_model(path: Path) -> None:
    """Load the folder with this file in it, and generate."""
    folder = Path("folder")
    shutil.copytree(material.model_folder(), folder)
    if path.name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    shutil.copyfile(path, folder / path.name)
    loaded = load_language_model(folder)
    generate(loaded, ["Lena was born in"], new_tokens=2)
    loaded.fingerprint.encode()


# --- traces


def make_trace(rng: random.Random) -> tuple[str, bytes]:
    """A trace with a line changed, dropped, doubled or moved, or with other bytes."""
    data = material.trace_file().read_bytes()
    way = rng.randrange(5)
    if way == 0:
        return "x.trace.jsonl", mutate.at_bytes(rng, data)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    if way == 1:
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    elif way == 2:
        lines.insert(at, rng.choice((lines[at], b"", b"null", b"[]", b"7", b'"x"', b"{}", b'{"event": null}')))
    else:
        lines[at] = mutate.as_json(rng, mutate.tree(rng, json.loads(lines[at])))
    return "x.trace.jsonl", b"\n".join(lines) + b"\n"


def use_trace(path: Path) -> None:
    """Go on from it and write the bank."""
    trace = Path("out/x.trace.jsonl")
    shutil.copyfile(path, trace)
    found = material.optimised(trace)
    write_templates(
        Path("out/bank.yaml"), load_task("counterfact"), found.templates, {"gain": found.gain.mean}, found.scores
    )


# --- replies of an endpoint

GOOD = ["Change this one fact and leave the rest alone.", "Only the answer asked about may change here."]


def make_reply(rng: random.Random) -> tuple[str, bytes]:
    """What a model might write instead of a list of descriptions."""
    whole = rng.choice(({"descriptions": GOOD}, GOOD, {"descriptions": [*GOOD, {"text": GOOD[0]}]}))
    content = mutate.as_json(rng, mutate.tree(rng, whole, rng.randrange(1, 3)))
    if rng.random() < 0.2:
        content = b"```json\n" + content + rng.choice((b"\n```", b"```", b"\n``` Here you are!"))
    return "x.reply", mutate.at_bytes(rng, content) if rng.random() < 0.3 else content


def use_reply(path: Path) -> None:
    """Parse it and keep what can be an instruction."""
    use_text(path.read_bytes().decode("utf-8", "replace"))


def use_text(content: Any) -> None:
    """As :func:`use_reply`, for what stands in ``choices[0].message.content``."""
    message = SimpleNamespace(content=content)
    answer = SimpleNamespace(choices=[SimpleNamespace(message=message)])
    endpoint = ChatEndpoint.__new__(ChatEndpoint)
    endpoint.model, endpoint.pause = "m", 0.0
    completions = SimpleNamespace(create=lambda **asked: answer)
    endpoint._client = SimpleNamespace(chat=SimpleNamespace(completions=completions))  # type: ignore[assignment]
    keep(EndpointProposer(endpoint))


def keep(writer: EndpointProposer) -> None:
    """Ask a proposer, and write what it proposes as `instructions generate` does."""
    task = load_task("counterfact")
    calls: list[Any] = []
    texts = []
    for text, parent in writer.propose(ProposalContext(task, (), (), 2, 1), calls.append):
        if validation_error(text, task) is None and text not in {each.text for each in texts}:
            texts.append(Candidate(text, writer.name, parent, 1))
    Path("out/calls.jsonl").write_text(json.dumps(calls, ensure_ascii=False), encoding="utf-8")
    if len(texts) > 1:
        write_templates(Path("out/bank.yaml"), task, texts, {"proposer": writer.name}, {})


TARGETS = {
    target.name: target
    for target in (
        Target("data", 0.33, make_data, use_data),
        Target("yaml", 0.22, make_yaml, use_yaml),
        Target("deltas", 0.10, _make_tensors("x.safetensors", material.delta_file, ("metadata",), DELTA), use_delta),
        Target(
            "editors",
            0.06,
            _make_tensors("x.safetensors", material.editor_file, ("config", "training"), EDITOR),
            use_editor,
        ),
        Target("models", 0.05, make_model, use_model),
        Target("gguf", 0.01, make_gguf, use_gguf),
        Target(
            "checkpoints",
            0.06,
            _make_tensors("x.safetensors", material.checkpoint_file, ("progress", "settings"), CHECKPOINT),
            use_checkpoint,
        ),
        Target("traces", 0.05, make_trace, use_trace),
        Target("endpoint", 0.06, make_reply, use_reply),
        Target("commands", 0.04, commands.make, commands.use),
    )
}
