"""Who multiplies: the computations behind the adapters, chosen when a layer is built and never in a forward."""
