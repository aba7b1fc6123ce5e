"""Checkpoints of MEND from other programs: the converted editor makes the update that their formula gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.editors.easyedit import convert_easyedit
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import DataError, EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import linear_shape
from instructedit.records import EditRequest

RANK = 6


def names_of(model: LanguageModel) -> list[str]:
    """Edited matrices in an order of their own: from the top down."""
    return [matrix.name for matrix in reversed(model.structure.last_mlps(2))]


def shape_of(model: LanguageModel, name: str) -> tuple[int, int]:
    shape = linear_shape(model.model.get_submodule(name))
    assert shape is not None
    return shape


def random_state(model: LanguageModel, norm: bool = True) -> dict[str, Any]:
    """The other program's state: a network for each shape, step sizes of both signs, and the model's config."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    names = names_of(model)
    state: dict[str, Any] = {"edit_lrs": torch.tensor([0.02, -0.01, 0.03, 0.005, -0.02, 0.01][: len(names)])}
    for inputs, outputs in dict.fromkeys(shape_of(model, name) for name in names):
        modes = sum(shape_of(model, name) == (inputs, outputs) for name in names)
        width, prefix = inputs + outputs, f"mend.({inputs}, {outputs})"
        for letter, size in (("u", inputs), ("v", outputs)):
            state[f"{prefix}.{letter}_mean"] = draw(size) if norm else torch.full((size,), torch.nan)
            state[f"{prefix}.{letter}_s"] = draw(size).square() * 50 if norm else torch.full((size,), torch.nan)
            state[f"{prefix}.{letter}_std"] = (state[f"{prefix}.{letter}_s"] / 40) ** 0.5
        state[f"{prefix}.k"] = torch.tensor([41.0]) if norm else torch.tensor([torch.nan])
        for layer in range(2):
            place = f"{prefix}.mlp.layers.{layer}"
            state[f"{place}.u"], state[f"{place}.v"] = draw(width, RANK), draw(RANK, width)
            state[f"{place}.bias"] = draw(width)
            state[f"{place}.mode_scale.weight"] = 1 + draw(modes, width)
            state[f"{place}.mode_shift.weight"] = draw(modes, width)
    return {**state, "model_config": model.model.config}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write(model: LanguageModel, state: dict[str, Any], **changes: object) -> tuple[Path, Path]:
        config = {
            "alg": "MEND", "inner_params": [f"{name}.weight" for name in names_of(model)], "rank": RANK, "n_hidden": 1,
            "norm": True, "combine": True, "shared": True, "init": "id", "mlp_class": "IDMLP", "lr": 1e-6,
        }  # fmt: skip
        checkpoint, file = tmp_path / "mend.pt", tmp_path / "mend.yaml"
        torch.save({"model": state, "step": 7, "val_stats": {"loss": 1.0}}, checkpoint)
        file.write_text(yaml.safe_dump(config | changes))
        return checkpoint, file

    return write


def their_update(model: LanguageModel, state: dict[str, Any], request: EditRequest, norm: bool) -> dict[str, Tensor]:
    """+lr sum_t x~_t^T delta~_t, written down from their description."""
    query = model.text.encode_pair(request.prompt, request.target)
    ids, start = torch.tensor([query.ids]), query.target_start
    seen: dict[str, list[Tensor]] = {name: [] for name in names_of(model)}
    hooks = []
    for name in seen:
        module = model.model.get_submodule(name)

        def read(module: Any, args: Any, output: Tensor, name: str = name) -> None:
            output.retain_grad()
            seen[name] = [args[0].detach(), output]

        hooks.append(module.register_forward_hook(read))
    with torch.enable_grad():
        for parameter in model.model.parameters():
            parameter.requires_grad_(True)
        logits = model.model(input_ids=ids).logits
        functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:]).backward()
        model.model.zero_grad(set_to_none=True)
        for parameter in model.model.parameters():
            parameter.requires_grad_(False)
    for hook in hooks:
        hook.remove()
    changes, count = {}, dict.fromkeys({shape_of(model, name) for name in seen}, 0)
    for name, rate in zip(seen, state["edit_lrs"], strict=True):
        shape = shape_of(model, name)
        x, delta = seen[name][0].reshape(-1, shape[0]), seen[name][1].grad.reshape(-1, shape[1])  # type: ignore[union-attr]
        kept = (x != 0).any(-1) & (delta != 0).any(-1)
        net = f"mend.{shape}"
        parts = [x[kept], delta[kept]]
        if norm:
            parts = [
                (value - state[f"{net}.{letter}_mean"]) / (state[f"{net}.{letter}_std"] + 1e-7)
                for letter, value in zip("uv", parts, strict=True)
            ]
        z, mode = torch.cat(parts, -1), count[shape]
        count[shape] += 1
        for layer in range(2):
            at = f"{net}.mlp.layers.{layer}"
            low = z @ state[f"{at}.v"].T @ state[f"{at}.u"].T + state[f"{at}.bias"]
            z = z + (low * state[f"{at}.mode_scale.weight"][mode] + state[f"{at}.mode_shift.weight"][mode]).clamp(min=0)
        changes[name] = rate * z[:, : shape[0]].T @ z[:, shape[0] :]
    return changes


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_converted_editor_makes_the_same_update(
    tiny: Callable[[str], LanguageModel],
    files: Callable[..., tuple[Path, Path]],
    requests_: list[EditRequest],
    tmp_path: Path,
    family: str,
    norm: bool,
) -> None:
    model = tiny(family)
    state = random_state(model, norm)
    editor = convert_easyedit(*files(model, state, norm=norm), model)
    save_editor(editor, model, tmp_path / "editor.safetensors")
    loaded = load_trained_editor(tmp_path / "editor.safetensors", model)
    for request in requests_:
        wanted = their_update(model, state, request, norm)
        for own in (editor, loaded):
            batch = own.edit(model, [request], [None])
            assert set(batch.factors) == set(wanted)
            for name, change in wanted.items():
                found = batch.factors[name].dense()[0]
                torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-4 * change.abs().max().item())


def test_a_checkpoint_cannot_run_code(
    gpt2: LanguageModel, files: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    with pytest.raises(DataError, match="without running its code"):
        convert_easyedit(*files(gpt2, random_state(gpt2) | {"extra": Harmful()}), gpt2)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combine": False}, "only checkpoints with `combine: True`"),
        ({"mlp_class": "MLP"}, "only checkpoints with `mlp_class: IDMLP`"),
        ({"shared": False}, "networks of their own"),
        ({"inner_params": ["transformer.h.9.mlp.c_fc.weight"] * 4}, "has no linear layer transformer.h.9"),
        ({"inner_params": ["transformer.h.0.mlp.c_fc.weight"]}, "4 step sizes"),
        ({"rank": 3}, "does not fit"),
    ],
)
def test_what_cannot_be_converted_is_said(
    gpt2: LanguageModel, files: Callable[..., tuple[Path, Path]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EditorError, match=message):
        convert_easyedit(*files(gpt2, random_state(gpt2), **changes), gpt2)


def test_other_files_are_refused(gpt2: LanguageModel, files: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    checkpoint, config = files(gpt2, random_state(gpt2))
    with pytest.raises(DataError, match="cannot be read"):
        convert_easyedit(config, config, gpt2)
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="edit_lrs"):
        convert_easyedit(tmp_path / "other.pt", config, gpt2)
    config.write_text("rank: 4\n")
    with pytest.raises(DataError, match="inner_params"):
        convert_easyedit(checkpoint, config, gpt2)


def test_the_command_writes_an_editor_file(
    checkpoint: Callable[[str], Path], files: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    from instructedit import load_language_model

    folder = checkpoint("gpt2")
    model = load_language_model(folder)
    saved, config = files(model, random_state(model))
    out = tmp_path / "mend.safetensors"
    arguments = [
        "convert",
        str(saved),
        "--config",
        str(config),
        "--model",
        str(folder),
        "--out",
        str(out),
        "--json",
        "-",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rank"] == RANK
    assert load_trained_editor(out, model).name == "mend"
