"""What a plan is made of: the models with their sizes, the work of an epoch, and the machine, all as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rlhf_lightning.holdings import Decoding, Forward, Updates
from rlhf_lightning.planning.shapes import Shape
from rlhf_lightning.planning.sharding import Rule

FLOAT32 = 4

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number, by the name of its type."""


@dataclass(frozen=True)
class Model:
    """A model that the run holds.

    Attributes:
        role: As in :class:`~rlhf_lightning.holdings.HeldModel`.
        place: Where it comes from.
        shape: Its sizes.
        width: Bytes of a weight as it is loaded.
        trained: Whether it trains.
        scalar: Whether it has a scalar head.
        rank: Of its adapters; 0 without.
        weights_of: Role of the model whose frozen weights it shares.
        token_budget: Most tokens of a row that it reads without gradient; 0: the updates' own.
        late: Whether it is loaded by the first rollout, not before training.
        served: Whether a server could hold it instead.
        assumed: Where its sizes come from, if they were not read from the model itself.
    """

    role: str
    place: str
    shape: Shape
    width: int
    trained: bool = False
    scalar: bool = False
    rank: int = 0
    weights_of: str | None = None
    token_budget: int = 0
    late: bool = False
    served: bool = False
    assumed: str | None = None

    @property
    def base(self) -> int:
        """Parameters without adapters."""
        return self.shape.scalar_parameters if self.scalar else self.shape.parameters

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        return self.shape.adapters(self.rank)

    @property
    def learnt(self) -> int:
        """Parameters that train."""
        if not self.trained:
            return 0
        own_head = self.shape.hidden if self.scalar else 0
        return self.adapters + own_head if self.rank else self.base

    @property
    def whole(self) -> bool:
        """Whether all of its weights train."""
        return self.trained and not self.rank

    @property
    def outer(self) -> int:
        """Parameters outside the layers."""
        shape = self.shape
        return shape.embedding + shape.rest + (shape.hidden if self.scalar else shape.head)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a response, means over a run.

    Attributes:
        prompt: Of a prompt; 0 where prompts and responses are told together.
        response: Of a response.
        said: Where the numbers come from.
    """

    prompt: int
    response: int
    said: str = ""


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps, found by one step on a small tensor.

    Attributes:
        states: Numbers a parameter that stay (2 for Adam).
        whole_temporaries: Numbers a parameter that one step makes beside them, where all are done at once.
        single_temporaries: As many of the largest parameter, where they are done one after another.
        name: Its class.
    """

    states: float
    whole_temporaries: float
    single_temporaries: float
    name: str


@dataclass(frozen=True)
class Job:
    """A run, as a plan sees it.

    Attributes:
        models: All that it holds.
        updates: Its training.
        forwards: Its passes without gradient.
        decoding: Its sampler's needs.
        draws: Whether an epoch begins with a rollout.
        exact: Whether the sampler's log-probs serve as the trainer's at full precision.
        evaluates: Whether it measures greedy responses.
        lengths: Of prompts and responses.
        optimizer: What it keeps.
        autocast: Bytes of a number inside autocast; 0 without.
        rule: How the strategy divides memory.
        devices: Ranks.
        per_node: Ranks of one machine.
        on_cpu: Whether the device is the CPU.
        framework: Bytes of a process before it has a model.
        memory: Bytes of a device.
        saves: Whether checkpoints are written.
        notes: What was assumed.
    """

    models: tuple[Model, ...]
    updates: Updates
    forwards: tuple[Forward, ...]
    decoding: Decoding | None
    draws: bool
    exact: bool
    evaluates: bool
    lengths: Lengths
    optimizer: Optimizer
    autocast: int
    rule: Rule
    devices: int = 1
    per_node: int = 8
    on_cpu: bool = True
    framework: float = 0.0
    memory: float = 0.0
    saves: bool = True
    notes: tuple[str, ...] = field(default=())

    def model(self, role: str) -> Model:
        """The model of that role."""
        return next(model for model in self.models if model.role == role)

    @property
    def trained(self) -> tuple[Model, ...]:
        """The models that train."""
        return tuple(model for model in self.models if model.trained)

    @property
    def policy(self) -> Model:
        """The model that the sampler draws with."""
        return self.trained[0]

    @property
    def passes(self) -> tuple[Forward, ...]:
        """Passes without gradient, the one included that inexact log-probs of a sampler ask for."""
        if not self.draws or (self.exact and not self.autocast and self.width(self.policy) >= FLOAT32):
            return self.forwards
        return (*self.forwards, Forward("old log-probs", self.policy.role, True))

    @property
    def update_tokens(self) -> float:
        """Row tokens of an update: each prompt once, each response without its last token."""
        return self.updates.prompts * (self.lengths.prompt + self.updates.samples * self.response_row)

    @property
    def response_row(self) -> int:
        """Tokens of a response that stand in a row."""
        return max(self.lengths.response - 1, 1) if self.lengths.prompt else self.lengths.response

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update on one rank."""
        return max(1, -(-int(self.update_tokens) // (self.updates.token_budget * self.devices)))

    @property
    def row_tokens(self) -> float:
        """Tokens of a micro-batch: an update's share, within the budget."""
        return min(self.updates.token_budget, self.update_tokens / (self.micro_batches * self.devices))

    @property
    def epoch_tokens(self) -> float:
        """Row tokens of an epoch's data, once."""
        return self.update_tokens * self.updates.per_epoch

    @property
    def response_share(self) -> float:
        """Share of a row's tokens that predict something."""
        predicted = self.updates.samples * self.lengths.response
        return min(1.0, predicted / max(self.updates.samples * self.response_row + self.lengths.prompt, 1))

    def width(self, model: Model) -> int:
        """Bytes of a model's weight on the device."""
        return min(model.width, self.autocast or model.width) if self.rule.narrow else model.width

    def compute(self, model: Model) -> int:
        """Bytes of the numbers that its layers compute with."""
        return self.autocast or self.width(model)

    def share(self, divided: bool) -> float:
        """A rank's part of what is divided, or all of what is not."""
        return 1 / self.devices if divided else 1.0

    def changed(self, **changes: object) -> Job:
        """The same run otherwise."""
        return replace(self, **changes)  # type: ignore[arg-type]
