"""Data that people own: a file -> rows -> examples -> token ids with what is learned of them, and what was left out.

Nothing here imports torch: a file is read, and what is wrong with it is said, before any model is.
"""
