"""Slow references: plain loops over plain numbers, written from the papers' formulas alone."""
