"""The parts of ``ppo_step.py``: what each side runs, both trainers, and the tables."""
