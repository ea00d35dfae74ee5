"""Who multiplies: the computations behind the adapters, chosen by the quantizer and not by the modules."""
