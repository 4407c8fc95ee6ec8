"""The parts of ``grpo_step.py``: the cases, both sides of the comparison, the clock, the matrix rate and the table."""
