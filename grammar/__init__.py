"""The grammar of the `.lora` language, `lorakit.lark`; installed as `lorakit.grammar`."""
