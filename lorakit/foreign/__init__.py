"""Configs of PEFT, Axolotl, TRL and LLaMA-Factory, read and written as the `.lora` that means the same."""
