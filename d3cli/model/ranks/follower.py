"""The ranks after the first: they load their part of each weight and compute what rank 0 asks for.

They decide nothing and write nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3cli.base.errors import D3Error, ModelError
from d3cli.base.launch import Launch
from d3cli.files.names import ModelFiles, find_model
from d3cli.model.checkpoint import open_checkpoint
from d3cli.model.kv_cache import KVCache
from d3cli.model.load import load_model
from d3cli.model.load_plan import LoadOptions, check_model
from d3cli.model.model import LoadedModel
from d3cli.model.ranks.channel import END, Channel


@dataclass(frozen=True, slots=True)
class _Found:
    """A model that was found and can be loaded."""

    files: ModelFiles
    threads: int | None
    options: LoadOptions


class Follower:
    """Does what rank 0 asks for."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._launch = channel, channel.launch
        self._found: _Found | None = None
        self._model: LoadedModel | None = None
        self._caches: dict[int, KVCache] = {}

    def follow(self) -> None:
        """Follows until rank 0 needs the others no longer.

        Raises:
            RuntimeError: rank 0 has ended, or a pass failed.
        """
        while True:
            device = torch.device("cpu") if self._model is None else self._model.device
            request, tensors = self._channel.receive(device)
            if request["do"] == END:
                return
            for number in request["freed"]:
                self._caches.pop(number, None)
            if request["do"] in ("find", "load"):
                self._answer(request)
            else:
                self._pass(request, tensors)

    def _answer(self, request: dict[str, Any]) -> None:
        """Finds or loads a model, and says whether that went well."""
        error = None
        try:
            if request["do"] == "find":
                self._model, self._caches = None, {}
                self._found = _find(request, self._launch)
            else:
                assert self._found is not None
                self._model = load_model(
                    self._found.files, threads=self._found.threads, **self._found.options
                )
        except D3Error as failed:
            error = failed
        self._channel.answer(request["number"], error)

    def _pass(self, request: dict[str, Any], tensors: list[Tensor]) -> None:
        model = self._model
        assert model is not None
        match request["do"]:
            case "logits":
                model.logits(tensors[0])
            case "without units":
                model.without_units(tensors[0], request["units"], lambda *_: None)
            case "states":
                token_ids, *others = tensors
                given = dict(zip(request["given"], others, strict=False))
                states = dict(zip(request["states"], others[len(given) :], strict=True))
                model.hidden_states(
                    token_ids,
                    self._cache(model, request["cache"]),
                    attention_mask=given.get("attention_mask"),
                    position_ids=given.get("position_ids"),
                    limits=request["limits"],
                    states=states,
                )

    def _cache(self, model: LoadedModel, described: dict[str, Any] | None) -> KVCache | None:
        """The KV cache that rank 0 means, in the state in which rank 0 has it."""
        if described is None:
            return None
        cache = self._caches.get(described["number"])
        if cache is None:
            cache = self._caches[described["number"]] = model.new_cache()
        cache.follow(described["position"], described["lengths"], described["capacity"])
        return cache


def _find(request: dict[str, Any], launch: Launch) -> _Found:
    """Finds the model that rank 0 has found.

    Raises:
        D3Error: it is not here, is another one, or cannot be loaded.
    """
    files = find_model(request["model"], offline=True, revision=request["revision"])
    files.vet()
    if files.fingerprint() != request["fingerprint"]:
        raise ModelError(
            f"{request['model']} is another model here than on rank 0",
            "copy the same files to all machines",
        )
    options: LoadOptions = {"dtype": request["dtype"], "ranks": launch}
    options.update(request["options"])
    check_model(open_checkpoint(files).description, **options)
    return _Found(files, request["threads"], options)
