"""Which settings of a PEFT adapter this version of PEFT knows."""

from dataclasses import fields

from peft import AdaLoraConfig, LoraConfig

CONFIGS = {"LORA": LoraConfig, "ADALORA": AdaLoraConfig}


def known_settings(peft_type: str) -> set[str]:
    """The names that an adapter_config.json of this type may hold; any other stops PEFT from loading it."""
    return {field.name for field in fields(CONFIGS[peft_type])} | {"peft_type", "auto_mapping"}
