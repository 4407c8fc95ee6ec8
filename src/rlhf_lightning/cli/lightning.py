"""``rlhf fit | validate | test | predict``: LightningCLI with plug-ins by name and a folder for each run."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentError
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning import __version__
from rlhf_lightning.cli.arguments import Prepared, prepare
from rlhf_lightning.cli.document import as_list
from rlhf_lightning.cli.messages import explain, first_cause
from rlhf_lightning.cli.runs import RunFolder, existing_checkpoint
from rlhf_lightning.cli.signatures import import_class, signature
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import newest_checkpoint
from rlhf_lightning.strategies import check_strategy, register_strategies

TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "reload_dataloaders_every_n_epochs": 1,
    "use_distributed_sampler": False,
}
"""Trainer arguments whose defaults differ from Lightning's: on-policy data is made anew each epoch, and all ranks get
the same items, which they share themselves."""

DEFAULT_SEED = 1
NO_PLAN = "--no-plan"
"""Word that lets ``rlhf fit`` begin without asking whether the run fits in memory."""

_SWITCHED: dict[str, type] = {
    "enable_checkpointing": Checkpoint,
    "enable_progress_bar": ProgressBar,
    "enable_model_summary": ModelSummary,
}
_HEADER = [f"rlhf-lightning=={__version__}"]


class SaveRunConfig(SaveConfigCallback):
    """Writes the full configuration to ``config.yaml`` in the run folder; a resumed run's to ``config-2.yaml``, …."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes it, unless the folder's newest configuration says the same."""
        text = self.parser.dump(self.config, skip_none=False)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for path in _config_files(folder) if path.exists()]
        if not written or written[-1].read_text(encoding="utf-8") != text:
            (folder / _config_name(len(written))).write_text(text, encoding="utf-8")
        _tell_settings(trainer, yaml.safe_load(text))


class RLHFCLI(LightningCLI):
    """LightningCLI in subclass mode for module and datamodule.

    Args:
        argv: The command line without the program's name, subcommand first.

    Raises:
        RLHFError: For all that the user can mend.
    """

    prepared: Prepared
    folder: RunFolder
    ckpt_path: str | None = None
    run_dir: Path | None = None
    begins_again: bool = False

    def __init__(self, argv: Sequence[str]) -> None:
        self.planned = argv[0] == "fit" and NO_PLAN not in argv
        argv = [word for word in argv if argv[0] != "fit" or word != NO_PLAN]
        kwargs = {"exit_on_error": False, "dump_header": _HEADER}
        own = {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == argv[0]}
        self.subcommands = lambda: own  # type: ignore[method-assign]  # no parser is made for the others
        super().__init__(
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=DEFAULT_SEED,
            parser_kwargs={**kwargs, argv[0]: dict(kwargs)},
            args=list(argv),
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where the run's folder lies."""
        parser.add_argument("--run.name", type=str, default="run", help="Name of the run (default: the config's name).")
        parser.add_argument("--run.root", type=str, default="runs", help="Folder of all runs.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Prepares the command line, then has it parsed.

        The checkpoint's path is put aside while LightningCLI reads the configuration: it would lay the checkpoint's
        hyper-parameters over what the user wrote.
        """
        self.prepared = prepare(args)
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "config.json"
                file.write_text(json.dumps(self.prepared.document.values, default=str), encoding="utf-8")
                words = [self.prepared.subcommand, f"--config={file}", *self.prepared.arguments]
                self.config = parser.parse_args(words)
        except ArgumentError as error:
            raise ConfigError(explain(str(error), self.prepared.document)) from error
        self.config = _plain(self.config)
        self.ckpt_path = self._own["ckpt_path"]
        self._own["ckpt_path"] = None

    def before_instantiate_classes(self) -> None:
        """Opens the run folder and hands the seed on, before any class is made."""
        own = self._own
        register_strategies()
        check_strategy(own["trainer.strategy"])
        own["weights_only"] = True if own["weights_only"] is None else own["weights_only"]
        self._hand_on_seed("model")
        self._hand_on_seed("data")
        self.folder = RunFolder(own["run.root"], own["run.name"])
        own["ckpt_path"] = self._find_checkpoint()
        if not own["trainer.fast_dev_run"]:
            self.run_dir = self._open_folder()

    def instantiate_classes(self) -> None:
        """Makes the classes; what a constructor refuses or misses is the user's to mend, any other failure is a bug."""
        mended = (ValueError, MisconfigurationException, ModuleNotFoundError)
        try:
            super().instantiate_classes()
        except mended as error:
            first = first_cause(error, self._own)
            if isinstance(first, mended):
                raise ConfigError(str(first)) from error
            raise first from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer with our callbacks, where the user did not give others; the run's table is always kept."""
        given = self.config_init[self.subcommand]["trainer"]
        if self.run_dir is None:
            return self._made_trainer(kwargs)
        from rlhf_lightning.callbacks import default_callbacks, default_loggers

        own = as_list(given["callbacks"])
        callbacks = [*own, *_wanted(given, default_callbacks(self.run_dir, own))]
        kwargs |= {"default_root_dir": str(self.run_dir), "callbacks": callbacks}
        kwargs["logger"] = default_loggers(self.run_dir, given["logger"])
        if given["enable_checkpointing"] is None:
            kwargs["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
        return self._made_trainer(kwargs)

    def _made_trainer(self, kwargs: dict[str, Any]) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except TypeError as error:  # of a number of devices, and the like
            raise ConfigError(f"trainer: {error}") from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise ConfigError(f"seed_everything: {error}") from error

    def before_fit(self) -> None:
        """Lets the module look at everything it can without weights."""
        preflight = getattr(self.model, "preflight", None)
        if callable(preflight):
            preflight(self.datamodule)
        if self.planned and hasattr(self.model, "holdings"):
            self._check_fit()
        describe = getattr(self.model, "describe", None)
        if callable(describe):
            print(describe())

    def _check_fit(self) -> None:
        from rlhf_lightning.cli.plans import check_fit

        check_fit(self.model, self.datamodule, self._own["trainer"].as_dict())

    @property
    def _own(self) -> Any:
        return self.config[self.config["subcommand"]]

    def _hand_on_seed(self, key: str) -> None:
        """The run's seed for a class that takes one, unless the user gave it its own."""
        own = self._own
        holder, seed = own.get(key), own["seed_everything"]
        takes_seed = holder is not None and "seed" in signature(import_class(holder["class_path"], "")).hints
        if takes_seed and seed is not False and not self.prepared.given(key, "seed"):
            holder["init_args"]["seed"] = seed

    def _find_checkpoint(self) -> str | None:
        given = self.ckpt_path
        if given == "auto" and self.subcommand == "fit" and newest_checkpoint(self.folder.path) is None:
            self.begins_again = self.folder.is_begun()
            return None
        given = "last" if given == "auto" else given
        if given is None or given in ("best", "hpc"):
            return given
        if given == "last" and self.subcommand == "fit" and self.folder.is_begun():
            print(f"{self.folder.path} has no checkpoint yet: the run begins again", file=sys.stderr)
            self.begins_again = True
            return None
        return str(self.folder.last_checkpoint() if given == "last" else existing_checkpoint(given))

    def _open_folder(self) -> Path:
        """The folder to write to; the other processes of a run take what the first one opened."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return self.folder.path
        if self.subcommand != "fit":
            beside = self.folder.numbered(str(self.subcommand))
            return RunFolder(str(beside.parent), beside.name).make()
        checkpoint = self._own["ckpt_path"]
        goes_on = self.begins_again or (checkpoint is not None and self.folder.holds(checkpoint))
        return self.folder.make() if goes_on else self.folder.open_new()


def _plain(value: Any) -> Any:
    """Parsed arguments with texts for enumerations of texts, which a class may have by default and YAML cannot hold."""
    if isinstance(value, str) and isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Namespace):
        return Namespace(**{name: _plain(item) for name, item in vars(value).items()})
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if type(value) is dict else value


def _tell_settings(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Gives the run's settings to its loggers; one that refuses them (MLflow: those of before a resume) is named."""
    for logger in trainer.loggers:
        try:
            logger.log_hyperparams(settings)
        except Exception as error:
            first = str(error).partition("\n")[0]
            print(f"logger {type(logger).__name__} did not take the settings: {first}", file=sys.stderr)


def _wanted(given: Any, defaults: list[Callback]) -> list[Callback]:
    """The default callbacks that the user did not switch off."""
    off = tuple(kind for key, kind in _SWITCHED.items() if given[key] is False)
    return [callback for callback in defaults if not isinstance(callback, off)]


def _config_name(index: int) -> str:
    return "config.yaml" if index == 0 else f"config-{index + 1}.yaml"


def _config_files(folder: Path) -> list[Path]:
    count = len(list(folder.glob("config*.yaml")))
    return [folder / _config_name(index) for index in range(count)]
