"""Blocks compiled so that products which read one input are one, and a step keeps what its memory allows."""
