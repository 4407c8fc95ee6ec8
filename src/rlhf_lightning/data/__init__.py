"""From tasks and files to tokens: the order of prompts, their rendering, and the two data modules."""
