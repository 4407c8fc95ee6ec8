"""What vLLM's workers learn from us; vLLM mixes this class into its own worker, in whichever process that runs."""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """Methods that ``collective_rpc`` finds by name."""

    model_runner: Any

    def repack_heads(self) -> None:
        """Packs the LM head's weight anew where the platform multiplies with a packed copy of it.

        A head that is tied to the embedding is not among the weights that are loaded, so on CPU its packed copy stays
        behind when the embedding changes (seen in 0.32; no error is raised).
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        for module in self.model_runner.get_model().modules():
            head = getattr(module, "base_layer", module)
            if isinstance(head, ParallelLMHead):
                head.quant_method.process_weights_after_loading(head)
