"""Optimizers that step one set of weights and mean another to be used, as schedule-free ones do.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682.
"""

from __future__ import annotations

from typing import Any


def to_training(optimizer: Any) -> None:
    """Give the model the weights that are stepped, if the optimizer keeps others."""
    if callable(switch := getattr(optimizer, "train", None)):
        switch()


def to_evaluation(optimizer: Any) -> None:
    """Give the model the weights that are meant to be used, if the optimizer steps others."""
    if callable(switch := getattr(optimizer, "eval", None)):
        switch()
