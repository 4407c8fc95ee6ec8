"""Scaling studies: many runs that share what they have in common, and the paper's figures from their results."""
