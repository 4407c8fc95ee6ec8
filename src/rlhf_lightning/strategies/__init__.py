"""What trains on many devices: Lightning's strategies, and what modules need to know of them."""

from rlhf_lightning.strategies.names import check_strategy as check_strategy
from rlhf_lightning.strategies.names import register_strategies as register_strategies
from rlhf_lightning.strategies.names import sharding_of as sharding_of
from rlhf_lightning.strategies.names import strategy_named as strategy_named
from rlhf_lightning.strategies.sharding import Sharding as Sharding
