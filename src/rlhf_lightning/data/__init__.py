"""From tasks and files to tokens: the order of prompts, their rendering, and the three data modules."""
