"""An optimizer's states by the names of its parameters, or by their places in it.

PyTorch's optimizers number parameters group by group; shards are kept by name. Frozen parameters stand in no group, so
their places in the module say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rlhf_lightning.errors import ConfigError

Groups = Sequence[Mapping[str, Any]]


def by_place(states: Mapping[str, Any], module: nn.Module, groups: Groups) -> dict[str, Any]:
    """States by name, as an ordinary optimizer of these groups reads them.

    Args:
        states: ``state`` and ``param_groups``, by name; a tied parameter may have any of its names.
        module: Whose names they are.
        groups: The optimizer's, with its parameters under ``params``.

    Raises:
        ConfigError: If the groups are others.
    """
    _check_groups(states, groups)
    places = {id(p): place for place, p in enumerate(p for group in groups for p in group["params"])}
    place_of = {name: places[id(p)] for name, p in module.named_parameters(remove_duplicate=False) if id(p) in places}
    renamed = [
        {**saved, "params": [places[id(p)] for p in own["params"]]}
        for saved, own in zip(states["param_groups"], groups, strict=True)
    ]
    return {"state": {place_of[name]: kept for name, kept in states["state"].items()}, "param_groups": renamed}


def by_name(states: Mapping[str, Any], module: nn.Module, groups: Groups) -> dict[str, Any]:
    """States by place, as any optimizer of the same groups saved them, by the names of the module's parameters.

    Raises:
        ConfigError: If the groups are others.
    """
    _check_groups(states, groups)
    names = {id(p): name for name, p in module.named_parameters()}
    own = [[names[id(p)] for p in group["params"]] for group in groups]
    renamed = [{**saved, "params": ours} for saved, ours in zip(states["param_groups"], own, strict=True)]
    places = _flat(saved["params"] for saved in states["param_groups"])
    name_of = dict(zip(places, _flat(own), strict=True))
    return {"state": {name_of[place]: kept for place, kept in states["state"].items()}, "param_groups": renamed}


def _check_groups(states: Mapping[str, Any], groups: Groups) -> None:
    saved = [len(group["params"]) for group in states["param_groups"]]
    ours = [len(group["params"]) for group in groups]
    if saved != ours:
        raise ConfigError(
            f"the checkpoint's optimizer has groups of {saved} parameters, but this run's of {ours}: "
            "resume with the configuration that the run was begun with"
        )


def _flat(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for part in parts for item in part]
