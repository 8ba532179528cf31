"""Experiments: labml programs, each file to be read as a page."""
