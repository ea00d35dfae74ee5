"""`hqq`: half-quadratic quantization, whose zero points fit the weights better than rounding to nearest does."""

from lorakit_hqq.quantizer import HQQ, lorakit_quantizers

__all__ = ["HQQ", "lorakit_quantizers"]
