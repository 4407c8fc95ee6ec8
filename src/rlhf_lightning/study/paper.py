"""What the paper says where a study has a figure or table of its own: printed numbers, and its finding in a line."""

from __future__ import annotations

TABLE_1_TASKS = ("MATH", "GPQA", "LiveCodeBench", "GSM8K", "MMLU", "Average")

TABLE_1: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("", "SFT", ""): (48.2, 27.8, 21.0, 85.3, 71.4, 50.7),
    ("4", "PPO", "9B"): (51.4, 30.1, 24.0, 85.0, 71.0, 52.3),
    ("4", "GRPO", "9B"): (51.5, 31.1, 21.0, 86.1, 70.3, 52.0),
    ("4", "PPO", "32B"): (53.5, 32.6, 24.3, 86.5, 70.4, 53.5),
    ("4", "GRPO", "32B"): (52.8, 32.3, 24.3, 86.9, 72.0, 53.6),
    ("16", "PPO", "9B"): (52.8, 31.5, 24.3, 85.5, 71.1, 53.0),
    ("16", "GRPO", "9B"): (52.6, 31.7, 22.8, 86.1, 72.2, 53.1),
    ("16", "PPO", "32B"): (53.3, 33.0, 25.0, 87.2, 69.4, 53.6),
    ("16", "GRPO", "32B"): (52.7, 33.9, 24.5, 87.0, 71.4, 53.9),
}
"""Table 1: percent, by samples a prompt, algorithm and reward model."""

FINDINGS = {
    "figure_1_left": "more samples a prompt raise accuracy and soon plateau (§4.2.1); a 32B reward model is ahead of a "
    "9B one from more than 2 samples on (§4.2.2)",
    "figure_1_middle": "with a 32B reward model the gain falls from 4.4 to 1.9 points as the policy grows from 9B to "
    "200B (§4.2.4)",
    "figure_2": "it depends on the task: MMLU is uneven, and AlignBench falls at 16 samples (§4.2.1)",
    "figure_3": "policies gain much less than best-of-N by the same reward model promises (§4.2.1)",
    "figure_4": "more samples a prompt raise the reward faster (§4.2.1); GRPO moves further from the SFT model and "
    "writes longer (§4.2.5)",
    "figure_5": "accuracy rises early and then hardly at all, while the reward goes on rising (§4.2.3)",
    "figure_6_left": "more prompts help more than more solutions a prompt, at the same number of solutions (§4.3.1)",
    "figure_6_right": "process supervision is ahead on the task it was labelled for, not reliably on others (§4.3.2)",
    "table_1": "PPO and GRPO differ little (§4.2.5)",
}
"""By figure, what the paper found."""
