# ruff: noqa: E501
"""A log of our own making for each row of `messages.toml`, and logs in which nothing is to be found.

The part around a message is written as such programs write, with names and figures that no real log has.
"""

LOGS = {
    "shared-memory": """
Traceback (most recent call last):
  File "/opt/tune/loader.py", line 12, in fetch
RuntimeError: DataLoader worker (pid 411) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.
""",
    "killed": """
Loading checkpoint shards:  43%|####      | 3/7 [00:41<00:55, 13.8s/it]
[2031-02-03 04:05:06,789] [INFO] [launch.py:428:sigkill_handler] Killing subprocess 4110
[2031-02-03 04:05:07,001] [ERROR] [launch.py:434:sigkill_handler] ['/opt/py/bin/python', '-u', 'main.py'] exits with return code = -9
""",
    "memory-forecast": """
error: memory: this run would need about 99.0 GiB, but 1.5 GiB are free
hint: these settings would fit: method=lora quant=int4
""",
    "cuda-out-of-memory": """
  File "/opt/tune/step.py", line 7, in step
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.11 GiB. GPU 0 has a total capacity of 7.77 GiB of which 3.00 MiB is free.
""",
    "offloaded": """
WARNING:root:Some parameters are on the meta device because they were offloaded to the cpu and disk.
""",
    "cpu-out-of-memory": """
RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 777777777 bytes.
""",
    "disk-full": """
  File "/opt/tune/save.py", line 70, in save
OSError: [Errno 28] No space left on device: 'output/checkpoint-700/optimizer.pt'
""",
    "driver-too-old": """
RuntimeError: The NVIDIA driver on your system is too old (found version 10020). Please update your GPU driver.
""",
    "no-kernel-image": """
/opt/py/torch/cuda/__init__.py:1: UserWarning: Old Card 9 with CUDA capability sm_60 is not compatible with the current PyTorch installation.
RuntimeError: CUDA error: no kernel image is available for execution on the device
""",
    "no-cuda": """
    raise AssertionError("Torch not compiled with CUDA enabled")
AssertionError: Torch not compiled with CUDA enabled
""",
    "docker-without-gpu": """
docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].
""",
    "device-ordinal": """
  File "/opt/tune/main.py", line 30, in main
RuntimeError: CUDA error: invalid device ordinal
""",
    "int8-needs-cuda-11": """
CUDA SETUP: Detected CUDA version 102
CUDA SETUP: CUDA version lower than 11 are currently not supported for LLM.int8(). You will be only to use 8-bit optimizers
""",
    "bitsandbytes-without-cuda": """
/opt/py/bitsandbytes/cextension.py:3: UserWarning: The installed version of bitsandbytes was compiled without GPU support. 8-bit optimizers are unavailable.
""",
    "bf16-unsupported": """
ValueError: Your setup doesn't support bf16/gpu. You need torch>=1.10, using Ampere GPU with cuda>=11.0
""",
    "half-on-cpu": """
  File "/opt/tune/talk.py", line 5, in answer
RuntimeError: "addmm_impl_cpu_" not implemented for 'Half'
""",
    "default-process-group": """
  File "/home/me/ptuning/trainer.py", line 999, in _load_rng_state
RuntimeError: Default process group has not been initialized, please make sure to call init_process_group.
ERROR:torch.distributed.elastic.multiprocessing.api:failed (exitcode: 1) local_rank: 0 (pid: 77) of binary: /opt/py/bin/python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
""",
    "local-rank": """
usage: main.py [-h] --model_name_or_path MODEL
main.py: error: unrecognized arguments: --local-rank=1
""",
    "device-map": """
ValueError: You can't train a model that has been loaded with `device_map='auto'` in any distributed mode. Please rerun your script
""",
    "port-in-use": """
[W socket.cpp:426] [c10d] The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use).
RuntimeError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: 1, code: -98
""",
    "nccl-missing": """
RuntimeError: Distributed package doesn't have NCCL built in
""",
    "nccl-peer-access": """
NotImplementedError: Using RTX 4000 series doesn't support faster communication broadband via P2P or IB. Please set `NCCL_P2P_DISABLE="1"`
""",
    "nccl-timeout": """
[E ProcessGroupNCCL.cpp:475] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, Timeout(ms)=600000)
[E ProcessGroupNCCL.cpp:489] Some NCCL operations have failed or timed out.
""",
    "nccl-error": """
box:41:52 [1] misc/shmutils.cc:72 NCCL WARN Error: failed to extend /dev/shm/nccl-abc to 9637892 bytes
torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1333, unhandled system error, NCCL version 2.21.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
""",
    "child-failed": """
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
main.py FAILED
Root Cause (first observed failure):
[0]:
  exitcode  : 1 (pid: 77)
""",
    "peer-gone": """
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:41234
""",
    "icetk-protobuf": """
ERROR: pip's dependency resolver does not currently take into account all the packages that are installed.
icetk 0.0.5 requires protobuf<3.19, but you have protobuf 4.99.0 which is incompatible.
TypeError: Descriptors cannot not be created directly.
""",
    "quantization-kernels": """
Failed to load cpm_kernels:Library cublasLt is not initialized
  File "/cache/modules/quantization.py", line 70, in forward
NameError: name 'round_up' is not defined
""",
    "train-on-codes": """
ValueError: You cannot perform fine-tuning on purely quantized models. Please attach trainable adapters on top of the quantized model
""",
    "merge-into-codes": """
  File "/opt/tune/merge.py", line 9, in merge
ValueError: Cannot merge LORA layers when the model is loaded in 8-bit mode
""",
    "numpy-2": """
A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.0 as it may crash.
""",
    "deepspeed-build": """
deepspeed.ops.op_builder.builder.CUDAMismatchException: >- DeepSpeed Op Builder: Installed CUDA version 11.2 does not match the version torch was compiled with 11.7, unable to compile cuda/cpp extensions
""",
    "flash-attention": """
ImportError: FlashAttention2 has been toggled on, but it cannot be used due to the following error: the package flash_attn seems to be not installed.
""",
    "tokenizer-attribute": """
  File "/cache/modules/tokenization_chatglm.py", line 200, in vocab_size
    return self.sp_tokenizer.num_tokens
AttributeError: 'ChatGLMTokenizer' object has no attribute 'sp_tokenizer'. Did you mean: '_tokenize'?
""",
    "padding-side": """
  File "/opt/py/transformers/tokenization_utils_base.py", line 3000, in pad
TypeError: ChatGLMTokenizer._pad() got an unexpected keyword argument 'padding_side'
""",
    "eos-token-setter": """
  File "/cache/modules/tokenization_chatglm.py", line 111, in __init__
AttributeError: property 'eos_token' of 'ChatGLMTokenizer' object has no setter
""",
    "cache-layout": """
Traceback (most recent call last):
  File "/opt/tune/talk.py", line 9, in <module>
  File "/cache/modules/modeling_chatglm.py", line 400, in forward
    cache_k, cache_v = kv_cache
ValueError: too many values to unpack (expected 2)
""",
    "prefix-encoder-missing": """
  File "/opt/tune/evaluate.py", line 30, in main
AttributeError: 'ChatGLMModel' object has no attribute 'prefix_encoder'
""",
    "remote-code-drift": """
  File "/opt/tune/demo.py", line 8, in ask
AttributeError: 'ChatGLMTokenizer' object has no attribute 'build_chat_input'
""",
    "trust-remote-code": """
ValueError: The repository here contains custom code which must be executed to correctly load the model.
Please pass the argument `trust_remote_code=True` to allow custom code to be run.
""",
    "transformers-modules": """
ModuleNotFoundError: No module named 'transformers_modules.my-model'
""",
    "import-name": """
ImportError: cannot import name 'an_old_name' from 'transformers.deepspeed' (/opt/py/transformers/deepspeed.py)
""",
    "unknown-architecture": """
ValueError: The checkpoint you are trying to load has model type `glm4` but Transformers does not recognize this architecture.
""",
    "trainer-arguments": """
TypeError: Seq2SeqTrainingArguments.__init__() got an unexpected keyword argument 'evaluation_strategy'
""",
    "git-lfs-pointer": """
safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge
""",
    "damaged-file": """
RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory
""",
    "hub-unreachable": """
OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
""",
    "prefix-size": """
RuntimeError: Error(s) in loading state_dict for ChatGLMForConditionalGeneration:
	size mismatch for transformer.prefix_encoder.embedding.weight: copying a param with shape torch.Size([64, 9]) from checkpoint
""",
    "prefix-not-served": """
  File "/opt/serve/loader.py", line 80, in load_weights
KeyError: 'transformer.prefix_encoder.embedding.weight'
""",
    "empty-weights": """
	size mismatch for base_model.model.x.lora_A.default.weight: copying a param with shape torch.Size([0]) from checkpoint, the shape in current model is torch.Size([8, 64]).
""",
    "adapter-of-another-base": """
	size mismatch for base_model.model.x.lora_A.default.weight: copying a param with shape torch.Size([8, 32]) from checkpoint
""",
    "adapter-config-keys": """
TypeError: LoraConfig.__init__() got an unexpected keyword argument 'a_newer_setting'
""",
    "wrong-tokenizer": """
  File "/opt/py/torch/nn/functional.py", line 2000, in embedding
IndexError: index out of range in self
""",
    "device-side-assert": """
RuntimeError: CUDA error: device-side assert triggered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
""",
    "ragged-rows": """
ValueError: expected sequence of length 129 at dim 1 (got 128)
The above exception was the direct cause of the following exception:
ValueError: Unable to create tensor, you should probably activate truncation and/or padding with 'padding=True' 'truncation=True'
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
  exitcode  : 1 (pid: 90)
""",
    "special-id-missing": """
  File "/cache/modules/modeling_chatglm.py", line 300, in <listcomp>
ValueError: 130004 is not in list
""",
    "file-charset": """
  File "D:\\tune\\read.py", line 3, in rows
UnicodeDecodeError: 'gbk' codec can't decode byte 0xaf in position 12: illegal multibyte sequence
""",
    "data-file": """
datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset
""",
    "column-missing": """
  File "/opt/tune/template.py", line 44, in convert
KeyError: 'conversations'
""",
    "small-validation-set": """
IndexError: Index 49 out of range for dataset of size 7.
""",
    "unused-columns": """
ValueError: No columns in the dataset match the model's forward method signature: (args, kwargs, label). The following columns have been ignored
""",
    "rows-too-long": """
Input length of input_ids is 300, but `max_length` is set to 256. This can lead to unexpected behavior.
""",
    "half-and-float": """
  File "/opt/py/torch/nn/modules/linear.py", line 100, in forward
RuntimeError: expected scalar type Half but found Float
""",
    "unscale-fp16": """
ValueError: Attempting to unscale FP16 gradients.
""",
    "no-gradient": """
RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
""",
    "prefix-and-recomputing": """
ValueError: PREFIX_TUNING does not work with gradient checkpointing.
""",
    "target-modules": """
ValueError: Target modules {'query', 'value'} not found in the base model. Please check the target modules and try again.
""",
    "adalora-total-step": """
ValueError: AdaLoRA does not work when `total_step` is None, supply a value > 0.
""",
    "two-devices": """
RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!
""",
    "logits-not-finite": """
RuntimeError: probability tensor contains either `inf`, `nan` or element < 0
""",
    "loss-nan": """
{'loss': 2.31, 'grad_norm': 0.9, 'learning_rate': 0.02, 'epoch': 0.1}
{'loss': nan, 'grad_norm': nan, 'learning_rate': 0.02, 'epoch': 0.2}
{'loss': nan, 'grad_norm': nan, 'learning_rate': 0.02, 'epoch': 0.3}
""",
    "loss-zero": """
{'loss': 3.41, 'learning_rate': 0.0001, 'epoch': 0.01}
{'loss': 0.0, 'learning_rate': 9.9e-05, 'epoch': 0.02}
""",
    "resume-checkpoint": """
ValueError: Can't find a valid checkpoint at output/checkpoint-500
""",
    "wandb-login": """
wandb.errors.UsageError: api_key not configured (no-tty). call wandb.login(key=[your_api_key])
""",
    "shell-comment": """
train.sh: line 7: --train_file: command not found
""",
    "empty-hypothesis": """
  File "/opt/py/rouge_chinese/rouge.py", line 99, in get_scores
ValueError: Hypothesis is empty.
""",
    "gradio": """
AttributeError: 'Textbox' object has no attribute 'style'
""",
    "vllm-lora": """
ValueError: LoRA rank 32 is greater than max_lora_rank 16.
""",
    "vllm-kv-cache": """
ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache (7000).
""",
    "missing-package": """
ModuleNotFoundError: No module named 'rouge_chinese'
""",
}
"""By the name of the row that has to explain it first."""

HEALTHY = """
[2031-02-03 04:05:06] [INFO] NCCL version 2.21.5+cuda12.4
box:41:52 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.7<0>; NCCL INFO NET/Plugin: no plugin found, using internal
INFO:root:device: cuda, 16-bits training: True, bitsandbytes 0.50.1, protobuf 4.25
Some weights of ChatGLMForConditionalGeneration were not initialized from the checkpoint: ['transformer.prefix_encoder.embedding.weight']
Load kernel : /cache/modules/quantization_kernels_parallel.so
tokenizer: padding_side='left', truncation_side='right', pre_seq_len 128, prefix_projection False
trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312
\r  0%|          | 0/3000 [00:00<?, ?it/s]\r 50%|#####     | 1500/3000 [10:00<10:00,  2.50it/s]
{'loss': 0.0213, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 2.9}
{'eval_loss': 0.031, 'eval_runtime': 7.7, 'epoch': 3.0}
global step 3000 ( 100.00% ) , epoch: 50, loss: 0.02130, speed: 0.56 step/s
too many values to unpack (expected 2) is a message that this script handles by itself
***** train metrics *****
  total_flos = 129GF
  train_loss = 0.07
Process exits with return code = 0
"""
"""Words of the table in lines that are no errors."""
