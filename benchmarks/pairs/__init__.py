"""The parts of ``reward_model.py``: the pairs, both sides of the comparison, and the table."""
