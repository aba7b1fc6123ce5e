"""Command lines out of the real commands' own parameters, with good and nasty values."""

from __future__ import annotations

import json
import os
import random
import re
import types
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

import typer
import typer.main

from fuzz import material, mutate
from fuzz.outcomes import Ran, command
from instructedit.cli.app import app

#: What an @ stands before, :func:`use` puts a path in the place of, so that a command line can be kept as a case.
_TEXT = ("Lena was born in", "Oston", "Lena", "Change this one fact alone.", "positive")
_NUMBERS = ("-1", "0", "x", "", "1e3", "nan", "99999999999999999999", "1.5", "0x1", "١")
_GOOD: dict[str, tuple[str, ...]] = {
    "--model": ("@model",),
    "--editor": ("@editor", "ft", "lora", "grace", "calinet", "in-context"),
    "--task": ("counterfact", "rename", "this-fact", "@task"),
    "--opposite": ("rename", "counterfact"),
    "--data": ("bundled/counterfact.jsonl", "@data"),
    "--template-file": ("@bank",),
    "--requests": ("@requests",),
    "--apply": ("@delta",),
    "--out": ("out/x.safetensors", "out/x.yaml", "out/a/b/c"),
    "--json": ("-", "out/x.json", "out/d/x.json"),
    "--dtype": ("float32", "bfloat16", "float16", "auto"),
    "--device": ("cpu", "auto"),
    "--device-map": ("auto", "cpu", '{"": "cpu"}', '{"transformer": "cpu", "lm_head": "cpu"}'),
    "--protocol": ("plain", "generation", "paper"),
    "--templates": ("validation", "test"),
    "--combine": ("distil", "merge", "sum"),
    "--format": ("peft", "gguf", "merged", "merged-gguf"),
    "edits": ("@delta",),
    "url": ("http://127.0.0.1:9",),
    "adapter": ("@delta",),
    "--proposer": ("offline",),
    "--base-url": ("http://127.0.0.1:9/v1",),
    "--budget": ("1s",),
    "--recipe": ("@recipe",),
    "recipe": ("@recipe",),
    "name": ("counterfact", "@task"),
    "--base": ("@model",),
}
_NASTY: dict[str, tuple[str, ...]] = {
    "--device": ("xyz", "cuda", "cuda:99", "meta", "mps", "cpu:7", "disk", "", "cuda:-1", "cuda:x"),
    "--device-map": ("xyz", "{}", "[]", '{"x": "cpu"}', '{"": "cuda:9"}', '{"": null}', '{"": [1]}', "{", '{"": 99}'),
    "--base-url": ("x", "http://", "file:///etc/hostname", "http://user:secret@127.0.0.1:9", "http://[::1", ""),
    "--budget": ("", "1", "9" * 400 + "h", "-1s", "1s1s", "١s", "0.0s"),
    "--json": ("", "out", "/dev/full", "/dev/null", "/proc/x/y", "x" * 300, "out/" + "y" * 250, "-x", "out/\udce4"),
    "--out": ("", "out", "/dev/full", "/dev/null", "/proc/x/y", "x" * 300, "out/" + "y" * 250, "out/\udce4", "/dev/x/"),
    "--editor": ("@delta", "@data", "@model", "rome", "memit", "bundled", "mend", "FT"),
    "--apply": ("@editor", "@data", "@model", "@recipe"),
    "--model": ("@data", "@delta", "gpt2", "nobody/nothing", "a/b/c", "@emptyfolder", "@untrusted"),
    "--data": ("@recipe", "@delta", "bundled/", "bundled/../x", "bundled/nothing.jsonl", "@emptyfolder"),
    "--template-file": ("@task", "@recipe", "@data"),
    "--task": ("@bank", "@recipe", "counterfat", "x.yaml"),
    "--requests": ("@data", "@recipe", "@delta"),
    "recipe": ("@task", "@data", "@model", "x.yaml"),
}
#: Options whose large values are a wish for long work, so only small or impossible ones are tried.
_LONG = {
    "--steps": "1",
    "--rounds": "1",
    "--candidates": "2",
    "--count": "2",
    "--edits": "3",
    "--limit": "2",
    "--patience": "1",
    "--jobs": "1",
    "--seeds": "1",
    "--batch": "2",
    "--budget": "1s",
}
#: Options that a command always gets, so that none starts long work or loads more than the tiny model.
_ALWAYS: dict[str, tuple[str, ...]] = {
    "edit": ("--model", "--editor"),
    "evaluate": ("--model", "--editor", "--limit", "--task", "--data"),
    "train": ("--steps", "--base", "--out"),
    "doctor": ("--model",),
    "instructions score": ("--model", "--editor", "--edits", "--task", "--data"),
    "instructions optimize": (
        "--model",
        "--editor",
        "--edits",
        "--task",
        "--data",
        "--rounds",
        "--candidates",
        "--budget",
        "--out",
    ),
    "instructions generate": ("--task", "--count"),
    "instructions show": ("--task",),
}
#: What these would do takes too long: their arguments end in one that cannot be right.
_WRONG = {
    "demo": ("--model", "@emptyfolder"),
    "reproduce": ("@recipe",),
    "build-base": ("@data", "--out", "out/b"),
    "analyze directions": ("--editor", "x", "--out", "out/a"),
}


@dataclass(frozen=True)
class Parameter:
    """An option or argument: its longest name, and the type of one value."""

    name: str
    kind: type

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")

    @property
    def is_number(self) -> bool:
        return self.kind in (int, float)


def _kind(hint: Any) -> type:
    """The type of one value: ``int`` for ``Annotated[list[int] | None, …]``."""
    while get_origin(hint) is not None:
        if get_origin(hint) is Literal:
            return str
        inside = [each for each in get_args(hint) if each is not type(None)]
        assert get_origin(hint) in (Annotated, Union, types.UnionType, list)
        hint = inside[0]
    return hint if isinstance(hint, type) else str


def _commands() -> dict[str, list[Parameter]]:
    """Every command's parameters, as typer makes them from its function."""
    found = {}
    groups = [("", app, typer.main.get_command(app))]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inside: Any = typer.main.get_command(group.typer_instance)
        groups.append((f"{group.name or group.typer_instance.info.name or inside.name} ", group.typer_instance, inside))
    for prefix, instance, whole in groups:
        for info in instance.registered_commands:
            assert info.callback is not None
            hints = get_type_hints(info.callback, include_extras=True)
            name = info.name or info.callback.__name__
            parts: Any = whole
            found[prefix + name] = [
                Parameter(max(part.opts, key=len), _kind(hints[part.name]))
                for part in parts.commands[name].params
                if part.name in hints
            ]
    return found


COMMANDS = _commands()


def _value(rng: random.Random, parameter: Parameter, good: float) -> str:
    name = parameter.name
    if rng.random() < good:
        if name in _LONG:
            return _LONG[name]
        if parameter.is_number:
            return str(rng.randrange(2, 5))
        if issubclass(parameter.kind, Enum):
            return str(rng.choice(list(parameter.kind)).value)
        return rng.choice(_GOOD.get(name, _TEXT))
    if parameter.is_number or name in _LONG:
        return rng.choice(_NUMBERS[:6] if name in _LONG else _NUMBERS)
    if name in _NASTY and rng.random() < 0.7:
        return rng.choice(_NASTY[name])
    return rng.choice((*mutate.TEXTS, "\udce4", "x\udcffy")).replace("\x00", "0")


def make(rng: random.Random) -> tuple[str, bytes]:
    """A command line as a JSON list; most values are good, so that most get past the first check."""
    name = rng.choice([*COMMANDS, "edit", "edit", "evaluate", "doctor"])
    good = rng.choice((0.6, 0.8, 0.95))
    arguments = name.split()
    if rng.random() < 0.02:
        return "x.command.json", json.dumps([rng.choice(mutate.TEXTS).replace("\x00", "0")]).encode()
    kinds = {"edit": rng.choice((("--prompt", "--target"), ("--requests",), ("--apply",), ("--prompt", "--target")))}
    wanted = {*_ALWAYS.get(name, ()), *kinds.get(name, ())}
    for parameter in COMMANDS[name]:
        option = parameter.name
        if name in _WRONG and (parameter.positional or option in _WRONG[name]):
            continue
        chance = 0.15 if name != "edit" or option not in ("--prompt", "--target", "--requests", "--apply") else 0.03
        if option not in wanted and not (parameter.positional and name == "train") and rng.random() > chance:
            continue
        if parameter.kind is bool:
            arguments.append(option)
        else:
            value = _value(rng, parameter, good)
            arguments += [value] if parameter.positional else [option, value]
    arguments += _WRONG.get(name, ())
    if rng.random() < 0.03:
        arguments.insert(rng.randrange(len(arguments)), rng.choice(mutate.TEXTS).replace("\x00", "0"))
    return "x.command.json", json.dumps(arguments).encode()


def places() -> dict[str, Path]:
    """The files behind the names with an @."""
    folder = material.folder() / "places"
    if not folder.is_dir():
        folder.mkdir()
        texts = material.yaml_texts()
        (folder / "recipe.yaml").write_text(texts["recipe"][0], encoding="utf-8")
        (folder / "task.yaml").write_text(texts["task"][0], encoding="utf-8")
        (folder / "bank.yaml").write_text(texts["bank"][0], encoding="utf-8")
        rows = material.ROWS["instructedit"]
        (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows * 3), encoding="utf-8")
        lines = "\n".join(json.dumps(row) for row in material.ROWS["requests"])
        (folder / "requests.jsonl").write_text(lines, encoding="utf-8")
        (folder / "empty").mkdir()
        untrusted = folder / "untrusted"
        untrusted.mkdir()
        maps = {"AutoConfig": "payload.C", "AutoModelForCausalLM": "payload.M"}
        (untrusted / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": maps}), encoding="utf-8")
        (untrusted / "payload.py").write_bytes((material.model_folder() / "payload.py").read_bytes())
    return {
        "@model": material.model_folder(),
        "@editor": material.editor_file(),
        "@delta": material.delta_file(),
        "@recipe": folder / "recipe.yaml",
        "@task": folder / "task.yaml",
        "@bank": folder / "bank.yaml",
        "@data": folder / "data.jsonl",
        "@requests": folder / "requests.jsonl",
        "@emptyfolder": folder / "empty",
        "@untrusted": folder / "untrusted",
    }


def use(path: Path) -> Ran:
    """Run it, without public data and with a home of its own."""
    arguments: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    known = {name: str(place) for name, place in places().items()}
    environment = {key: text for key, text in os.environ.items() if key != "INSTRUCTEDIT_DATA"}
    home = material.folder() / "home"
    home.mkdir(exist_ok=True)
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "COLUMNS": "100"}
    with patch.dict(os.environ, environment, clear=True):
        ran = command(*(known.get(argument, argument) for argument in arguments))
    # What the option is for: a failed edit is reported, and the exit code is 1.
    failed = re.search(r"edits?\s+failed", ran.err) is not None
    refused = "--require-success" in arguments and ran.code == 1 and failed
    return replace(ran, code=2) if refused else ran
