"""Artifacts: what lorakit writes to disk and reads back."""
