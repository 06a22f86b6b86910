"""The official scripts and configurations, written for these tests from tables of their settings."""

import json
from pathlib import Path

import peft
import torch

from glmtune import load_model
from glmtune.methods import apply_method
from glmtune.recipe import Ptuning

COMMON = """\
    --overwrite_cache \\
    --overwrite_output_dir \\
    --predict_with_generate \\
"""
ADGEN_FILES = """\
    --train_file AdvertiseGen/train.json \\
    --validation_file AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
"""
TORCHRUN = "torchrun --standalone --nnodes=1 --nproc-per-node=$NUM_GPUS main.py \\\n"
PYTHON = "CUDA_VISIBLE_DEVICES=0 python3 main.py \\\n"


def train(model: str) -> str:
    start, target, more = {
        "chatglm-6b": (PYTHON, 64, ""),
        "chatglm2-6b": ("NUM_GPUS=1\n" + TORCHRUN, 128, "    --preprocessing_num_workers 10 \\\n"),
    }[model]
    return f"""\
PRE_SEQ_LEN=128
LR=2e-2
{start}    --do_train \\
{ADGEN_FILES}{COMMON}{more}    --model_name_or_path THUDM/{model} \\
    --output_dir output/adgen-{model}-pt-$PRE_SEQ_LEN-$LR \\
    --max_source_length 64 \\
    --max_target_length {target} \\
    --per_device_train_batch_size 1 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 16 \\
    --max_steps 3000 \\
    --logging_steps 10 \\
    --save_steps 1000 \\
    --learning_rate $LR \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""


def train_chat(model: str) -> str:
    start = PYTHON if model == "chatglm-6b" else "NUM_GPUS=1\n" + TORCHRUN
    return f"""\
PRE_SEQ_LEN=128
LR=1e-2
{start}    --do_train \\
    --train_file $CHAT_TRAIN_DATA \\
    --validation_file $CHAT_VAL_DATA \\
    --prompt_column prompt \\
    --response_column response \\
    --history_column history \\
{COMMON}    --model_name_or_path THUDM/{model} \\
    --output_dir $CHECKPOINT_NAME \\
    --max_source_length 256 \\
    --max_target_length 256 \\
    --per_device_train_batch_size 1 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 16 \\
    --max_steps 3000 \\
    --logging_steps 10 \\
    --save_steps 1000 \\
    --learning_rate $LR \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""


def ds_train_finetune(model: str) -> str:
    return f"""\
LR=1e-4
MASTER_PORT=$(shuf -n 1 -i 10000-65535)
deepspeed --num_gpus=4 --master_port $MASTER_PORT main.py \\
    --deepspeed deepspeed.json \\
    --do_train \\
{ADGEN_FILES.replace("--validation_file", "--test_file")}{COMMON}    --model_name_or_path THUDM/{model} \\
    --output_dir ./output/adgen-{model}-ft-$LR \\
    --max_source_length 64 \\
    --max_target_length 64 \\
    --per_device_train_batch_size 4 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 1 \\
    --max_steps 5000 \\
    --logging_steps 10 \\
    --save_steps 1000 \\
    --learning_rate $LR \\
    --fp16
"""


def evaluate(model: str, checkpoint: str = "", step: int = 3000) -> str:
    return f"""\
PRE_SEQ_LEN=128
CHECKPOINT={checkpoint or f"adgen-{model}-pt-128-2e-2"}
STEP={step}
{PYTHON}    --do_predict \\
    --validation_file AdvertiseGen/dev.json \\
    --test_file AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
{COMMON}    --model_name_or_path THUDM/{model} \\
    --ptuning_checkpoint ./output/$CHECKPOINT/checkpoint-$STEP \\
    --output_dir ./output/$CHECKPOINT \\
    --max_source_length 64 \\
    --max_target_length 64 \\
    --per_device_eval_batch_size 1 \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""


def evaluate_finetune(model: str) -> str:
    return f"""\
CHECKPOINT=adgen-{model}-ft-1e-4
STEP=5000
{PYTHON}    --do_predict \\
    --validation_file AdvertiseGen/dev.json \\
    --test_file AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
{COMMON}    --model_name_or_path ./output/$CHECKPOINT/checkpoint-$STEP \\
    --output_dir ./output/$CHECKPOINT \\
    --max_source_length 256 \\
    --max_target_length 256 \\
    --per_device_eval_batch_size 1 \\
    --fp16_full_eval
"""


def web_demo(model: str) -> str:
    return f"""\
PRE_SEQ_LEN=128
CUDA_VISIBLE_DEVICES=0 python3 web_demo.py \\
    --model_name_or_path THUDM/{model} \\
    --ptuning_checkpoint output/adgen-{model}-pt-128-2e-2/checkpoint-3000 \\
    --pre_seq_len $PRE_SEQ_LEN
"""


SCRIPTS = (train, train_chat, ds_train_finetune, evaluate, evaluate_finetune, web_demo)
MODELS = ("chatglm-6b", "chatglm2-6b")


def write_scripts(folder: Path, model: str) -> Path:
    """All scripts of a model, in a folder, with DeepSpeed's settings beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        (folder / f"{script.__name__}.sh").write_text(script(model), encoding="utf-8")
    (folder / "deepspeed.json").write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    return folder


PEFT = {
    "lora": "peft_config:\n  peft_type: LORA\n  task_type: CAUSAL_LM\n"
    "  r: 8\n  lora_alpha: 32\n  lora_dropout: 0.1\n",
    "ptuning_v2": "peft_config:\n  peft_type: PREFIX_TUNING\n  task_type: CAUSAL_LM\n"
    "  num_virtual_tokens: 128\n",
    "sft": "",
}


def config(name: str) -> str:
    """lora, ptuning_v2 or sft."""
    deepspeed = "  deepspeed: ds_zero_3.json\n" if name == "sft" else ""
    return f"""\
data_config:
  train_file: train.json
  val_file: dev.json
  test_file: dev.json
  num_proc: 16
max_input_length: 256
max_output_length: 512
training_args:
  output_dir: ./output
  max_steps: 3000
  learning_rate: 5e-5
  per_device_train_batch_size: 4
  dataloader_num_workers: 16
  remove_unused_columns: false
  save_strategy: steps
  save_steps: 500
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 500
  predict_with_generate: true
  generation_config:
    max_new_tokens: 512
{deepspeed}  use_cpu: false
{PEFT[name]}"""


# What they left


def write_lora(folder: Path, base: Path) -> Path:
    """A LoRA folder of PEFT's, its factors random."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["query_key_value"])
    return write_adapter(folder, config, base)


def write_adapter(folder: Path, config: peft.PeftConfig, base: Path) -> Path:
    """An adapter that PEFT itself writes, its factors random."""
    tuned = peft.get_peft_model(load_model(base, dtype="fp32"), config)
    torch.manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(str(folder))
    return folder


def write_prefix(folder: Path, base: Path) -> Path:
    """A P-Tuning checkpoint as the official trainer writes it: what requires gradients, and the config."""
    model = apply_method(load_model(base, dtype="fp32"), Ptuning(num_prefix_tokens=8))
    folder.mkdir(parents=True)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.save(trained, folder / "pytorch_model.bin")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "pre_seq_len": 8}), encoding="utf-8")
    return folder
