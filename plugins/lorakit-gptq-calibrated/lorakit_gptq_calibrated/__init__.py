"""`gptq`: quantization that keeps what a layer computes on its real inputs, rather than the weights themselves."""

from lorakit_gptq_calibrated.quantizer import GPTQ, lorakit_quantizers

__all__ = ["GPTQ", "lorakit_quantizers"]
