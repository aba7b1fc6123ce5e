"""EasyEdit's MEND as the peer, run from the user's own checkout (``--easyedit PATH``); nothing of it is copied here.

Its ``EditTrainer.train_step`` is called as it stands. Only what its package imports at the top level and does not
need for this (multimodal models, data sets) is left out, by giving Python empty packages in their place.
Needs ``pip install higher omegaconf``.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from instructedit.errors import DataError
from instructedit.models.language_model import LanguageModel
from instructedit.training.mixture import Example

PACKAGES = (
    "easyeditor",
    "easyeditor.trainer",
    "easyeditor.trainer.algs",
    "easyeditor.util",
    "easyeditor.evaluate",
    "easyeditor.models",
    "easyeditor.models.mend",
)
#: Imported at the top of modules that are needed, for things that are not: image models, judges, other methods.
STAND_INS = (
    "easyeditor.trainer.models",
    "easyeditor.util.alg_train_dict",
    "easyeditor.util.generate",
    "easyeditor.models.melo",
    "easyeditor.models.melo.melo",
    "easyeditor.models.mend.mend_multimodal_hparams",
    "hydra",
    "nltk",
    "openai",
    "scipy",
    "sklearn",
    "sklearn.metrics",
)


class _StandIn(types.ModuleType):
    """A module in which every name can be imported and nothing does anything."""

    __path__: ClassVar[list[str]] = []
    __all__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import(checkout: Path) -> types.SimpleNamespace:
    if not (checkout / "easyeditor" / "trainer" / "algs" / "MEND.py").is_file():
        raise DataError("is not a checkout of EasyEdit (easyeditor/trainer/algs/MEND.py is missing)", file=checkout)
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / Path(*name.split(".")))]
        sys.modules[name] = package
    real = {name: sys.modules.get(name) for name in STAND_INS}
    for name in STAND_INS:
        sys.modules[name] = _StandIn(name)
    try:
        return _entries()
    finally:  # others may look whether these packages are installed
        for name, module in real.items():
            if module is not None:
                sys.modules[name] = module
            elif not name.startswith("easyeditor"):
                del sys.modules[name]


def _entries() -> types.SimpleNamespace:
    mend = importlib.import_module("easyeditor.trainer.algs.MEND").MEND
    sys.modules["easyeditor.trainer"].MEND = mend  # type: ignore[attr-defined]
    sys.modules["easyeditor.util"].HyperParams = object  # type: ignore[attr-defined]
    return types.SimpleNamespace(
        mend=mend,
        trainer=importlib.import_module("easyeditor.trainer.EditTrainer").EditTrainer,
        executor=importlib.import_module("easyeditor.models.mend.mend_main").MendRewriteExecutor,
        quality=importlib.import_module("easyeditor.evaluate.evaluate").compute_edit_quality,
    )


class EasyEditMend:
    """One trainer of the peer with the recipe of its published MEND configuration, except where said.

    Args:
        checkout: the user's folder.
        language_model: whose edited weights it makes require gradients and hooks.
        matrices: module names that are edited.
        rank: of the hypernetwork.
        learning_rate: of the hypernetwork; step_size: initial, and its own learning rate.
        accumulate: edits an optimiser step.
    """

    def __init__(
        self,
        checkout: Path,
        language_model: LanguageModel,
        matrices: Sequence[str],
        *,
        rank: int,
        learning_rate: float,
        step_size: float = 1e-4,
        step_size_learning_rate: float = 1e-4,
        edit_weight: float = 1.0,
        accumulate: int = 10,
    ) -> None:
        peer = _import(checkout)
        self.language_model = language_model
        self.device = language_model.device
        model = language_model.model
        inner = [f"{name}.weight" for name in matrices]
        self.config = types.SimpleNamespace(
            alg="MEND",
            model_name="gpt2" if "gpt2" in type(model).__name__.lower() else "llama",
            model_class=type(model).__name__,
            inner_params=inner,
            device=str(self.device),
            shared=True,
            combine=True,
            one_sided=False,
            x_only=False,
            delta_only=False,
            norm=True,
            mlp_class="IDMLP",
            n_hidden=1,
            init="id",
            act="relu",
            rank=rank,
            edit_lr=step_size,
            lr=learning_rate,
            lr_lr=step_size_learning_rate,
            cedit=edit_weight,
            cloc=1.0,
            cbase=1.0,
            train_base=False,
            model_parallel=False,
            accumulate_bs=accumulate,
            grad_clip=100.0,
            max_length=40,
            alg_name="MEND",
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in inner)
        torch.manual_seed(0)
        self.mend = peer.mend(model, self.config, None)
        trainer = peer.trainer.__new__(peer.trainer)  # its constructor loads models and data from files
        trainer.config, trainer.model, trainer.original_model = self.config, self.mend, model
        trainer.opt = torch.optim.Adam(self.mend.outer_parameters(), lr=learning_rate)
        trainer.lr_opt = torch.optim.Adam([self.mend.edit_lrs], step_size_learning_rate)
        trainer.global_iter = 0
        self.trainer = trainer
        self._quality = peer.quality
        self._executor = peer.executor()
        self._executor.model, self._executor.tokenizer, self._executor.alg = model, language_model.tokenizer, self.mend
        self._executor.is_init = True  # with this editor instead of one from a file

    def _batch(self, example: Example) -> dict[str, Any]:
        pair = self.language_model.text.encode_pair
        edit = pair(example.request.prompt, example.request.target)
        stays = [pair(*query) for query in example.locality_targets]

        def tensors(queries: Sequence[Any]) -> dict[str, torch.Tensor]:
            ids = torch.tensor([query.ids for query in queries], device=self.device)
            labels = torch.tensor([query.ids[query.target_start :] for query in queries], device=self.device)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

        loc = tensors(stays)
        loc["decoder_attention_mask"] = torch.ones_like(loc["labels"])
        return {"edit_inner": tensors([edit]), "loc": loc}

    def train_edit(self, example: Example) -> dict[str, float]:
        """Its training step on one edit, the only number that it takes at a time; returns its own losses."""
        self.trainer.global_iter += 1
        info: dict[str, float] = self.trainer.train_step(self._batch(example))
        return info

    def evaluate_edit(self, example: Example) -> dict[str, Any]:
        """One edit as its editor evaluates it: all probes before, the edit, all probes after, weights put back."""
        model, tokenizer = self.language_model.model, self.language_model.tokenizer
        request = example.request
        record = {
            "prompt": request.prompt,
            "target_new": request.target,
            "ground_truth": request.target,
            "locality": {
                f"probe {index}": {"prompt": [prompt], "ground_truth": [answer]}
                for index, (prompt, answer) in enumerate(example.locality_targets)
            },
        }

        def quality(asked: Any) -> dict[str, Any]:
            found: dict[str, Any] = self._quality(
                asked, self.config.model_name, self.config, tokenizer, record, self.config.device
            )
            return found

        before = quality(model)
        edited, weights = self._executor.apply_to_model(
            model,
            tokenizer,
            [{"prompt": request.prompt, "target_new": request.target}],
            self.config,
            return_orig_weights=True,
        )
        after = quality(edited)
        with torch.no_grad():
            for name, weight in weights.items():
                model.get_parameter(name).copy_(weight)
        return {"before": before, "after": after}

    def apply_edit(self, example: Example) -> None:
        """One edit, without losses."""
        self.mend.eval()
        self.mend.edit(self._batch(example)["edit_inner"])
