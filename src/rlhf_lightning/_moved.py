"""Where what has moved is now: old paths in saved configurations, checkpoints, entry points and imports go on working.

:data:`MODULES` names modules that have gone, with those that hold their contents today; a package's entry stands for
all below it that has none of its own. :data:`NAMES` names what is called otherwise today, or lies elsewhere than the
rest of its old module. One finder serves these old names and no others, and imports what is behind one only when it is
asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

MODULES = {
    "advantages": "algorithms.advantages",
    "advantages.gae": "algorithms.advantages",
    "advantages.group": "algorithms.advantages",
    "advantages.opo": "algorithms.advantages",
    "advantages.process": "algorithms.advantages",
    "advantages.reinforce": "algorithms.advantages",
    "advantages.reinforce_plus_plus": "algorithms.advantages",
    "advantages.remax": "algorithms.advantages",
    "callbacks.checkpoint_files": "callbacks.checkpoint",
    "callbacks.files": "runs.files",
    "callbacks.key_metrics": "runs.key_metrics",
    "callbacks.live": "callbacks.progress",
    "callbacks.metrics_log": "callbacks.loggers",
    "callbacks.peers": "callbacks.watchdog",
    "callbacks.progress_view": "callbacks.progress",
    "callbacks.proxy_gap": "runs.key_metrics",
    "callbacks.requeue": "callbacks.preemption",
    "callbacks.reward_export": "callbacks.checkpoint",
    "callbacks.run_folder": "callbacks.loggers",
    "callbacks.sample_table": "callbacks.samples",
    "callbacks.shown_elsewhere": "callbacks.other_loggers",
    "callbacks.skipped_updates": "callbacks.health",
    "callbacks.trackio_logger": "callbacks.other_loggers",
    "data.chat": "data.render",
    "data.held_out": "data.order",
    "data.lengths": "data.judged",
    "data.mixing": "data.order",
    "data.questions": "data.rows",
    "data.rendered": "data.judged",
    "data.reward_sources.demonstrations": "data.reward_sources.responses",
    "data.reward_sources.prm800k": "data.reward_sources.labelled_steps",
    "data.reward_sources.solutions": "data.reward_sources.responses",
    "data.reward_sources.steps": "data.reward_sources.labelled_steps",
    "data.seeding": "data.order",
    "data.steps": "data.judged",
    "explore": "runs",
    "explore.browse": "runs.figures",
    "explore.colors": "runs.sample_page",
    "explore.figures": "runs.figures",
    "explore.page": "runs.sample_page",
    "explore.samples": "runs.sample_page",
    "kl": "algorithms.kl",
    "kl.controllers": "algorithms.kl",
    "kl.term": "algorithms.kl",
    "kl.terms": "algorithms.kl",
    "losses": "algorithms.losses",
    "losses.cispo": "algorithms.losses",
    "losses.clip": "algorithms.losses",
    "losses.clip_cov": "algorithms.losses",
    "losses.gspo": "algorithms.losses",
    "losses.importance": "algorithms.losses",
    "losses.kl_cov": "algorithms.losses",
    "losses.value": "algorithms.losses",
    "metrics": "algorithms.metrics",
    "metrics.means": "algorithms.metrics",
    "metrics.pairs_and_steps": "algorithms.reward_metrics",
    "metrics.quantiles": "algorithms.metrics",
    "metrics.reward": "algorithms.reward_metrics",
    "runs.tables": "runs.run",
    "modules.ahead": "modules.collector",
    "modules.sharing": "modules.trainer_checks",
    "samplers.ahead": "samplers.overlap",
    "samplers.shared": "samplers.wrappers",
    "scorers.shared": "scorers.wrappers",
    "tasks": "data.tasks",
    "tasks.arithmetic": "data.tasks.arithmetic",
    "tasks.files": "data.tasks.files",
    "tasks.function": "data.tasks.function",
    "tasks.math_clean": "data.tasks.math_clean",
    "tasks.math_equal": "data.tasks.math_equal",
    "tasks.math_text": "data.tasks.math_text",
    "tasks.math_units": "data.tasks.math_values",
    "tasks.math_values": "data.tasks.math_values",
    "tasks.presets": "data.tasks.presets",
    "tasks.reasoning_gym": "data.tasks.reasoning_gym",
    "tasks.verifiers": "data.tasks.verifiers",
    "transforms": "algorithms.transforms",
    "transforms.asymmetric_shrink": "algorithms.transforms",
    "transforms.clip": "algorithms.transforms",
    "transforms.group_normalize": "algorithms.transforms",
    "transforms.length_penalty": "algorithms.transforms",
    "transforms.soft_overlong": "algorithms.transforms",
    "transforms.whiten": "algorithms.transforms",
}
"""Modules of this package by their old paths, with their new ones."""

NAMES = {
    "explore.Page": "runs.sample_page.Page",
    "explore.browse_metrics": "runs.figures.browse_metrics",
    "explore.plot_frontier": "runs.figures.plot_frontier",
    "explore.plot_metrics": "runs.figures.plot_metrics",
    "explore.show_samples": "runs.sample_page.show_samples",
    "samplers.ahead.AheadSampler": "samplers.overlap.OverlapSampler",
    "samplers.shared.SharedSampler": "samplers.wrappers.DataParallelSampler",
    "samplers.shared.shared": "samplers.wrappers.data_parallel",
    "scorers.shared.SharedScorer": "scorers.wrappers.DataParallelScorer",
    "scorers.shared.shared": "scorers.wrappers.data_parallel",
    "transforms.Clip": "algorithms.transforms.ClipRewards",
    "transforms.clip.Clip": "algorithms.transforms.ClipRewards",
}
"""Classes and functions by their old paths, with their new ones, where the module's entry does not tell."""


def moved(module: str, name: str) -> Any:
    """What was called ``name`` in a module of this package that is named by its old path, without the package's name.

    Raises:
        AttributeError: If there is no such thing any more.
    """
    place, _, called = NAMES.get(f"{module}.{name}", f"{MODULES.get(module, '')}.{name}").rpartition(".")
    if not place or (name.startswith("__") and name != "__all__"):
        raise AttributeError(f"module {_PACKAGE + '.' + module!r} has no attribute {name!r}")
    today = import_module(f"{_PACKAGE}.{place}")
    return [public for public in vars(today) if public[0] != "_"] if name == "__all__" else getattr(today, called)


class _Old(Loader):
    """Makes an old module: empty, and asking :func:`moved` for all that is looked for in it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        own = module.__name__.partition(".")[2]
        module.__dict__["__getattr__"] = lambda name: moved(own, name)
        module.__dict__["__dir__"] = lambda: moved(own, "__all__")


class _StillThere(Loader):
    """Loads a module that is there, some of whose names are elsewhere now."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        own = module.__name__.partition(".")[2]
        module.__dict__.setdefault("__getattr__", lambda name: moved(own, name))


class OldPaths(MetaPathFinder):
    """Finds what :data:`MODULES` and :data:`NAMES` say, and nothing else."""

    def __init__(self) -> None:
        self.partly = {f"{_PACKAGE}.{name.rpartition('.')[0]}" for name in NAMES} - {f"{_PACKAGE}.{m}" for m in MODULES}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The old module, if it is one."""
        own = fullname.removeprefix(f"{_PACKAGE}.")
        if own == fullname:
            return None
        if own in MODULES:
            return ModuleSpec(fullname, _Old(), is_package=any(name.startswith(f"{own}.") for name in MODULES))
        spec = PathFinder.find_spec(fullname, path) if fullname in self.partly else None
        if spec is not None and spec.loader is not None:
            spec.loader = _StillThere(spec.loader)
        return spec


def serve() -> None:
    """Has Python's imports know the old paths, once."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldPaths())
