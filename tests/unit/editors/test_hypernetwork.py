"""The hypernetwork and the signals that it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instructedit.editors.footprint import footprint
from instructedit.editors.gradient import chosen_matrices, positions_in_edit
from instructedit.editors.hypernetwork import Hypernetwork, RunningNorm
from instructedit.editors.instructedit import InstructEditConfig
from instructedit.editors.ke import KnowledgeEditor, KnowledgeEditorConfig
from instructedit.editors.mend import Mend, MendConfig
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.editors.signals import Signal, read_signals
from instructedit.errors import EditorError, ModelError
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task

INPUTS, OUTPUTS, CODE = 6, 10, 4


def network(seed: int = 0, scramble: bool = False, embedding_dim: int = CODE, last_relu: bool = False) -> Hypernetwork:
    """For two matrices; with ``scramble`` every weight is random, else as at the start of training."""
    torch.manual_seed(seed)
    made = Hypernetwork(
        INPUTS, OUTPUTS, rank=3, layers=2, matrices=2, embedding_dim=embedding_dim, last_relu=last_relu
    ).eval()
    if scramble:
        for parameter in made.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return made


def tokens() -> tuple[Tensor, Tensor, list[int], Tensor]:
    """u, delta, tokens a matrix and edit of seven tokens of two matrices and three edits."""
    edit = torch.tensor([0, 0, 1, 2, 0, 1, 2])
    return torch.randn(7, INPUTS) * 2 + 1, torch.randn(7, OUTPUTS) * 0.1, [4, 3], edit


@pytest.mark.parametrize("last_relu", [False, True])
def test_network_starts_as_the_identity_on_normalised_input(last_relu: bool) -> None:
    made = network(last_relu=last_relu)
    u, delta, sizes, edit = tokens()
    made.observe(u, delta)
    pseudo_u, pseudo_delta = made(u, delta, sizes, torch.randn(3, CODE), edit)
    torch.testing.assert_close(pseudo_u, (u - u.mean(0)) / u.std(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pseudo_delta, (delta - delta.mean(0)) / delta.std(0), rtol=1e-4, atol=1e-4)


def test_summed_loss_signals_are_as_many_times_stronger_as_the_target_has_tokens(gpt2: LanguageModel) -> None:
    pairs = [("Lena was born in", "Oston"), ("Otto likes", "old garden gnomes and rivers")]
    batch = pad([gpt2.text.encode_pair(*pair) for pair in pairs], gpt2.text.pad_id)
    matrices = gpt2.structure.last_mlps(2)
    state = gpt2.split(2).trunk(batch)
    mean, total = (read_signals(gpt2, state, 2, matrices, average=average) for average in (True, False))
    lengths = torch.bincount(batch.rows).float()
    assert lengths[0] != lengths[1]
    for name, signal in mean.items():
        torch.testing.assert_close(total[name].delta, signal.delta * lengths[signal.edit][:, None])
        assert torch.equal(total[name].u, signal.u)


def test_untrained_network_passes_signals_on() -> None:
    u, delta, sizes, edit = tokens()
    pseudo_u, pseudo_delta = network()(u, delta, sizes, None, edit)
    assert torch.equal(pseudo_u, u)
    assert torch.equal(pseudo_delta, delta)


def test_every_layer_learns_from_the_start() -> None:
    """At the start what enters the activation is exactly zero; its gradient there must not be."""
    made = network(last_relu=True)
    u, delta, sizes, edit = tokens()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        pseudo_u, pseudo_delta = made(u, delta, sizes, torch.randn(3, CODE), edit)
        (pseudo_u.square().sum() - pseudo_delta.sum()).backward()
        optimizer.step()
    for layer in made.layers:
        for name in ("up", "bias", "scale", "shift"):
            assert getattr(layer, name).grad.abs().max() > 0, name
        assert layer.condition.weight.grad.abs().max() > 0


def test_running_norm_is_the_plain_mean_and_deviation() -> None:
    norm = RunningNorm(INPUTS)
    parts = [torch.randn(size, INPUTS) * scale + scale for size, scale in ((5, 1.0), (1, 3.0), (40, 0.2), (7, 10.0))]
    for part in parts:
        norm.update(part)
    seen = torch.cat(parts)
    x = torch.randn(9, INPUTS)
    torch.testing.assert_close(norm(x), (x - seen.mean(0)) / (seen.std(0) + 1e-7), rtol=1e-4, atol=1e-5)
    assert int(norm.count) == len(seen)


def test_running_norm_stands_still_outside_training() -> None:
    made = network()
    u, delta, sizes, edit = tokens()
    made.observe(u, delta)
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made(u * 5, delta, sizes, None, edit)
    assert all(torch.equal(buffer, before[name]) for name, buffer in made.named_buffers())


def test_codes_with_zero_condition_weights_change_nothing() -> None:
    made = network(scramble=True)
    for layer in made.layers:
        nn.init.zeros_(layer.condition.weight)
    u, delta, sizes, edit = tokens()
    plain = made(u, delta, sizes, None, edit)
    coded = made(u, delta, sizes, torch.randn(3, CODE), edit)
    assert all(torch.equal(one, other) for one, other in zip(plain, coded, strict=True))


def test_a_code_changes_its_own_edit_alone() -> None:
    made = network(scramble=True)
    u, delta, sizes, edit = tokens()
    embeddings = torch.zeros(3, CODE)
    embeddings[1] = torch.randn(CODE)
    coded = torch.cat(made(u, delta, sizes, embeddings, edit), dim=1)
    plain = torch.cat(made(u, delta, sizes, torch.zeros(3, CODE), edit), dim=1)
    changed = ((coded - plain).abs() > 1e-4).any(1)
    assert torch.equal(changed, edit == 1)


def test_zero_code_is_no_code() -> None:
    made = network(scramble=True)
    u, delta, sizes, edit = tokens()
    zero, none = (torch.cat(made(u, delta, sizes, embeddings, edit), 1) for embeddings in (torch.zeros(3, CODE), None))
    torch.testing.assert_close(zero, none)


def test_tokens_do_not_meet() -> None:
    made = network(scramble=True)
    u, delta, sizes, edit = tokens()
    embeddings = torch.randn(3, CODE)
    together = torch.cat(made(u, delta, sizes, embeddings, edit), 1)
    alone = [
        torch.cat(
            made(u[t : t + 1], delta[t : t + 1], [1, 0] if t < sizes[0] else [0, 1], embeddings, edit[t : t + 1]), 1
        )
        for t in range(len(u))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_matrices_have_their_own_scale_and_shift() -> None:
    made = network(scramble=True)
    u, delta, _, edit = tokens()
    first, second = (torch.cat(made(u, delta, sizes, None, edit), 1) for sizes in ([7, 0], [0, 7]))
    assert (first - second).abs().max() > 1e-3


def test_tokens_are_numbered_inside_their_edit() -> None:
    edit = torch.tensor([0, 0, 1, 3, 3, 3])
    assert positions_in_edit(edit).tolist() == [0, 1, 0, 0, 1, 2]


def signals_of(language_model: LanguageModel, requests: Sequence[EditRequest], blocks: int = 2) -> dict[str, Signal]:
    matrices = language_model.structure.last_mlps(blocks)
    split_layer = 4 - blocks
    batch = pad([language_model.text.encode_pair(r.prompt, r.target) for r in requests], language_model.text.pad_id)
    return read_signals(language_model, language_model.split(split_layer).trunk(batch), split_layer, matrices)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi3"])
def test_signals_make_up_the_gradient_of_the_weight(
    name: str, checkpoint: Callable[[str], Path], requests_: list[EditRequest]
) -> None:
    own = load_language_model(checkpoint(name))
    signals = signals_of(own, requests_)
    for edit, request in enumerate(requests_):
        query = own.text.encode_pair(request.prompt, request.target)
        own.model.requires_grad_(True)
        own.model.zero_grad()
        ids = torch.tensor([query.ids])
        logits = own.model(input_ids=ids).logits[0, query.target_start - 1 : -1]
        nn.functional.cross_entropy(logits, ids[0, query.target_start :]).backward()
        for matrix in own.structure.last_mlps(2):
            module = own.model.get_submodule(matrix.name)
            gradient = module.weight.grad.mT if isinstance(module, nn.Linear) else module.weight.grad
            signal = signals[matrix.name]
            mine = signal.edit == edit
            torch.testing.assert_close(
                signal.u[mine].mT @ signal.delta[mine], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1)
            )
            assert gradient.abs().max() > 1e-4


def test_last_block_keeps_only_the_predicting_tokens(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    signals = signals_of(gpt2, requests_)
    last = gpt2.structure.mlps[-1][-1].name
    targets = [len(q.ids) - q.target_start for q in (gpt2.text.encode_pair(r.prompt, r.target) for r in requests_)]
    assert torch.bincount(signals[last].edit).tolist() == targets


def test_signals_leave_the_model_without_gradients(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    signals = signals_of(gpt2, requests_)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in gpt2.model.parameters())
    assert not any(signal.u.requires_grad or signal.delta.requires_grad for signal in signals.values())


def replace_mlp(language_model: LanguageModel, replacement: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
    """Put something else in the place of the last block's MLP."""
    mlp = language_model.model.get_submodule(language_model.structure.mlps[-1][0].name.rpartition(".")[0])
    original = mlp.forward
    mlp.forward = lambda x: replacement(original, x)


def silence_second_row(mlp: Callable[..., Tensor], x: Tensor) -> Tensor:
    keep = torch.ones(len(x), 1, 1)
    keep[1:2] = 0
    return mlp(x) * keep


@pytest.mark.parametrize(
    ("replacement", "problem"),
    [
        (lambda mlp, x: 0 * mlp(x), r"gradient at transformer\.h\.3\.mlp\.c_fc is exactly zero for edits \[0, 1"),
        (silence_second_row, r"gradient at transformer\.h\.3\.mlp\.c_fc is exactly zero for edits \[1\]"),
        (lambda mlp, x: mlp(x).detach() + 0 * x, r"no gradient reaches transformer\.h\.3\.mlp\.c_fc"),
        (lambda mlp, x: x, r"the forward pass does not use transformer\.h\.3\.mlp\.c_fc, transformer\.h\.3"),
    ],
)
def test_matrix_without_gradient_is_named(
    own_gpt2: LanguageModel,
    requests_: list[EditRequest],
    replacement: Callable[[Callable[..., Tensor], Tensor], Tensor],
    problem: str,
) -> None:
    replace_mlp(own_gpt2, replacement)
    with pytest.raises(EditorError, match=problem):
        signals_of(own_gpt2, requests_)


def test_zero_loss_gradient_is_an_error(own_gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    own_gpt2.model.get_output_embeddings().weight.data.zero_()
    with pytest.raises(EditorError, match=r"gradient at transformer\.h\.2\.mlp\.c_fc is exactly zero"):
        signals_of(own_gpt2, requests_)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_signals_that_are_not_finite_are_named(
    own_gpt2: LanguageModel, requests_: list[EditRequest], value: float
) -> None:
    own_gpt2.model.get_submodule("transformer.h.3.mlp.c_proj").weight.data[0, 0] = value
    with pytest.raises(EditorError, match=r"signals at transformer\.h\.\d\.mlp\.c_\w+ are not finite"):
        signals_of(own_gpt2, requests_)


def test_diverged_editor_is_named(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    editor = new_editor(gpt2, name="mend")
    editor.log_lr.data[0] = 500.0
    with pytest.raises(EditorError, match=r"delta of transformer\.h\.2\.mlp\.c_fc is not finite"):
        editor.edit(gpt2, requests_, [None] * 3)


def test_untrained_mend_is_a_gradient_step(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = Mend.create(MendConfig(blocks=2, rank=4, step_size=0.25), gpt2).eval()
    deltas = editor.edit(gpt2, requests_, [None] * 3)
    for name, signal in signals_of(gpt2, requests_).items():
        for edit in range(3):
            mine = signal.edit == edit
            low = deltas.factors[name]
            torch.testing.assert_close(low.a[edit] @ low.b[edit], -0.25 * signal.u[mine].mT @ signal.delta[mine])


def test_knowledge_editor_gates_the_gradient(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    """At the start a gradient step; then gate * G + offset, written out in full, of its own edit."""
    editor = KnowledgeEditor.create(KnowledgeEditorConfig(blocks=2, step_size=0.25, embedding_dim=8), gpt2).eval()
    signals = signals_of(gpt2, requests_)
    embeddings = torch.randn(3, 8)
    for gate in editor.gates:
        nn.init.zeros_(gate.read.weight)
    plain = editor.deltas(signals, embeddings, 3)
    for gate in editor.gates:
        nn.init.normal_(gate.read.weight)
    gated = editor.deltas(signals, embeddings, 3)
    for matrix, gate in zip(editor.matrices, editor.gates, strict=True):
        signal = signals[matrix.name]
        parts = gate.read(embeddings).split((matrix.outputs, matrix.outputs, matrix.inputs, matrix.inputs, 1), dim=-1)
        for edit in range(3):
            mine = signal.edit == edit
            gradient = signal.u[mine].mT @ signal.delta[mine]
            low = plain.factors[matrix.name]
            torch.testing.assert_close(low.a[edit] @ low.b[edit], -0.25 * gradient)
            alpha, beta, gamma, zeta, eta = (part[edit] for part in parts)
            wanted = torch.outer(1 + gamma, alpha.softmax(0) * matrix.outputs) * gradient
            wanted += torch.outer(zeta, beta.softmax(0))
            low = gated.factors[matrix.name]
            torch.testing.assert_close(
                low.a[edit] @ low.b[edit], -0.25 * 2 * eta.sigmoid() * wanted, rtol=1e-3, atol=1e-5
            )
            assert int(gated.ranks[matrix.name][edit]) == int(mine.sum()) + 1


def test_a_closed_edit_goes_on_to_the_full_stop(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    """The signals are those of the same request with its full stop written out."""
    shape = {"blocks": 2, "rank": 4}
    closing = Mend.create(MendConfig(**shape, append_period=True), gpt2).eval()
    plain = Mend.create(MendConfig(**shape), gpt2).eval()
    written = [request.model_copy(update={"target": request.target + "."}) for request in requests_]
    one, other = closing.edit(gpt2, requests_, [None] * 3), plain.edit(gpt2, written, [None] * 3)
    for name, low in one.factors.items():
        torch.testing.assert_close(low.a @ low.b, other.factors[name].a @ other.factors[name].b)
    again = closing.edit(gpt2, written, [None] * 3)
    assert all(torch.equal(low.a, again.factors[name].a) for name, low in one.factors.items())


def test_edits_add_up_each_under_its_own_instruction(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    editor = new_editor(gpt2)
    task = load_task("counterfact")
    own = requests_[1].model_copy(update={"instruction": "Rename it for all."})
    first = task.instructions.render(task.instructions.templates[0])
    texts = [first, "Task: Edit\nDescription: Rename it for all."]
    total = make_edit(editor, gpt2, [requests_[0], own], task, combine="sum")
    batch = editor.edit(gpt2, [requests_[0], own], texts)
    for name, low in batch.factors.items():
        torch.testing.assert_close(total.factors[name].dense(), sum(low.a[row] @ low.b[row] for row in range(2)))
    total.check(gpt2)
    assert [request.prompt for request in total.metadata.requests] == [requests_[0].prompt, own.prompt]
    assert {request.task for request in total.metadata.requests} == {"counterfact"}
    assert total.metadata.editor == "instructedit"
    assert total.metadata.versions.keys() == {"instructedit", "torch", "transformers"}


@pytest.mark.parametrize(
    "config",
    [
        {"name": "mend"},
        {"name": "ke"},
        {"conditioning": "none", "layers": 1},
        pytest.param(
            {"conditioning": "hypernetwork"},
        ),
    ],
    ids=str,
)
def test_footprint_counts_the_parameters(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], config: dict[str, object]
) -> None:
    editor = new_editor(gpt2, **config)
    size = footprint(editor.config, gpt2)
    counted = sum(p.numel() for p in editor.parameters())
    assert size.editor == 4 * counted
    assert size.base == 4 * sum(p.numel() for p in gpt2.model.parameters())


def test_code_moves_the_step_sizes_of_its_own_edit(gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> None:
    editor = new_editor(gpt2)
    embeddings = torch.stack((torch.zeros(8), torch.ones(8)))
    plain, moved = editor.step_sizes(embeddings)
    torch.testing.assert_close(plain, editor.log_lr.exp())
    assert (moved - plain).abs().min() > 1e-4
    assert moved.min() > 0
    nn.init.zeros_(editor.log_lr_condition.weight)
    assert torch.equal(*editor.step_sizes(embeddings))


def test_matrices_can_be_chosen_by_name(gpt2: LanguageModel) -> None:
    config = MendConfig(matrices=("transformer.h.1.mlp.c_proj",))
    (matrix,) = chosen_matrices(gpt2, config)
    assert (matrix.inputs, matrix.outputs) == (80, 32)
    assert Mend.create(config, gpt2).split_layer == 1


def test_matrices_can_be_chosen_by_pattern_and_come_from_the_bottom_up(gpt2: LanguageModel) -> None:
    config = MendConfig(matrices=("transformer.h.[23].attn.c_proj", "*.2.mlp.*"))
    names = [matrix.name.removeprefix("transformer.h.") for matrix in chosen_matrices(gpt2, config)]
    assert names == ["2.attn.c_proj", "2.mlp.c_fc", "2.mlp.c_proj", "3.attn.c_proj"]
    assert Mend.create(config, gpt2).split_layer == 2


@pytest.mark.parametrize("name", ["transformer.h.1.mlp", "transformer.h.7.mlp.c_fc", "*.mlp.v_proj"])
def test_wrong_matrix_is_refused(gpt2: LanguageModel, name: str) -> None:
    with pytest.raises(ModelError, match=f"{re.escape(name)} is not a linear layer"):
        chosen_matrices(gpt2, MendConfig(matrices=(name,)))


def test_too_many_blocks_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(ModelError, match="cannot edit the last 5 blocks: the model has 4"):
        chosen_matrices(gpt2, InstructEditConfig(blocks=5))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {"name": "mend"},
        ),
        {"name": "ke"},
        {"conditioning": "none"},
        {"conditioning": "both"},
        {"encoder": "base"},
    ],
    ids=str,
)
def test_editor_file_gives_back_the_editor(
    gpt2: LanguageModel,
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
    tmp_path: Path,
    config: dict[str, str],
) -> None:
    editor = new_editor(gpt2, **config)
    save_editor(editor, gpt2, tmp_path / "editor.safetensors")
    loaded = load_trained_editor(tmp_path / "editor.safetensors", gpt2)
    assert loaded.name == editor.name
    texts = ["Task: Edit\nDescription: Change it."] * 3
    one, other = (e.edit(gpt2, requests_, texts) for e in (editor, loaded))
    for name, low in one.factors.items():
        assert torch.equal(low.a, other.factors[name].a)
        assert torch.equal(low.b, other.factors[name].b)


def test_editor_of_another_model_is_refused(
    gpt2: LanguageModel, tiny: Callable[[str], LanguageModel], new_editor: Callable[..., Mend], tmp_path: Path
) -> None:
    path = tmp_path / "editor.safetensors"
    save_editor(new_editor(gpt2), gpt2, path)
    with pytest.raises(EditorError, match=f"trained for the base model {gpt2.fingerprint}"):
        load_trained_editor(path, tiny("llama"))


def test_damaged_editor_file_is_refused(gpt2: LanguageModel, new_editor: Callable[..., Mend], tmp_path: Path) -> None:
    path = tmp_path / "editor.safetensors"
    save_editor(new_editor(gpt2), gpt2, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EditorError, match="cannot be read as an editor"):
        load_trained_editor(path, gpt2)
