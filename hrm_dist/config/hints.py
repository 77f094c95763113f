"""What to say of a key that is none of ours: what other projects call what we have, else the nearest spelling."""
# pyright: strict

import difflib
from collections.abc import Collection, Mapping, Sequence

# As alike as a slip of the finger leaves two words: `num_gpus` must not become `num_aug`.
_ALIKE = 0.8

_NAMES_ELSEWHERE = {
    "lr": "learning_rate base_lr base_learning_rate max_lr peak_lr init_lr lrate",
    "lr_min_ratio, the last learning rate as a share of lr": "min_lr lr_min min_learning_rate min_lr_ratio eta_min "
    "final_lr end_lr",
    "lr_warmup_steps": "warmup warmup_steps num_warmup_steps warmup_iters warmup_iterations warmup_ratio lr_warmup "
    "warmup_epochs",
    "global_batch_size, the examples of a step over all processes together": "batch_size bs batch train_batch_size "
    "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size device_batch_size "
    "batch_size_per_gpu local_batch_size total_batch_size effective_batch_size",
    "gradient_accumulation_steps, which splits global_batch_size": "grad_accum grad_accumulation "
    "gradient_accumulation accumulate_grad_batches accum_steps accum_iter grad_acc_steps num_micro_batches "
    "micro_batch_size microbatch_size train_micro_batch_size_per_gpu",
    "epochs, which counts passes over the tasks": "epoch num_epochs max_epochs n_epochs num_train_epochs "
    "total_epochs",
    "max_steps": "steps num_steps n_steps max_iters max_iterations iters iterations num_iterations total_steps "
    "train_steps num_train_steps max_train_steps training_steps",
    "weight_decay": "wd decay l2 l2_reg",
    "beta1": "adam_beta1 momentum",
    "beta2": "adam_beta2",
    "beta1 and beta2": "betas adam_betas",
    "ema_rate": "ema_decay ema_momentum",
    "ema": "use_ema",
    "seed": "random_seed manual_seed rng_seed",
    "engine: ddp, zero1, zero2, zero3 or fsdp2": "deepspeed deepspeed_config ds_config strategy fsdp fsdp2 ddp "
    "zero zero_stage sharding sharding_strategy parallel distributed distributed_backend parallelism",
    "precision: bf16 or fp32": "fp16 fp32 bf16 float16 bfloat16 half amp use_amp autocast mixed_precision dtype "
    "torch_dtype data_type",
    "device: auto, cpu or cuda": "accelerator cuda cpu use_cuda no_cuda use_cpu use_gpu",
    "compile": "torch_compile use_compile jit",
    "num_threads": "threads n_threads omp_num_threads cpu_threads",
    "activation_checkpointing": "gradient_checkpointing grad_checkpointing checkpoint_activations remat recompute",
    "data_path": "data data_dir data_root data_folder dataset_path dataset_dir dataset_name train_data train_path "
    "root",
    "checkpoint_path, the run's folder": "output output_dir output_path out out_dir out_path save_dir save_path "
    "run_dir log_dir logdir logging_dir work_dir exp_dir default_root_dir results_dir checkpoint_dir "
    "checkpoints_dir ckpt_dir",
    "checkpoint_interval, in steps": "save_steps save_every save_interval save_freq save_iters checkpoint_every "
    "checkpoint_steps checkpointing_steps ckpt_interval save_strategy save_every_n_steps",
    "keep_checkpoints": "save_total_limit save_top_k max_checkpoints checkpoints_total_limit",
    "resume: auto, never or the path of a checkpoint": "resume_from resume_from_checkpoint load_from load_path "
    "restore init_from ckpt ckpt_path checkpoint pretrained pretrained_path",
    "eval_interval, which counts passes, not steps": "eval_steps eval_every eval_freq eval_iters validate_every "
    "val_interval val_check_interval check_val_every_n_epoch evaluation_interval evaluation_strategy eval_strategy "
    "test_interval",
    "eval_batch_size, over all processes": "per_device_eval_batch_size val_batch_size test_batch_size",
    "log_interval, in steps": "logging_steps logging_interval log_every log_every_n_steps log_steps log_freq "
    "print_freq print_every",
    "project_name": "project wandb_project wandb_project_name",
    "run_name": "name wandb_name wandb_run_name experiment experiment_name exp_name exp job_name",
    "wandb_mode: disabled, offline or online": "wandb use_wandb wandb_log report_to logger",
    "tensorboard: true or false": "use_tensorboard tensorboard_dir tb tb_dir tensorboard_log",
    "arch.name": "model model_name model_type architecture arch_name",
    "arch.hidden_size": "d_model hidden_dim hidden dim model_dim n_embd n_embed embed_dim emb_dim embedding_dim "
    "width",
    "arch.num_heads": "n_heads n_head nhead heads num_attention_heads attention_heads",
    "arch.H_layers and arch.L_layers": "num_layers n_layers n_layer layers depth num_hidden_layers num_blocks",
    "arch.expansion, a multiple of arch.hidden_size": "mlp_ratio ffn_mult ffn_dim d_ff dim_feedforward "
    "intermediate_size",
    "arch.loss_type": "loss loss_fn loss_function criterion",
    "arch.halt_max_steps": "n_sup max_segments num_segments max_halt_steps",
    "arch.H_cycles and arch.L_cycles": "n_cycles num_cycles cycles num_recursions recursions",
    "max_skipped_updates": "max_nan skip_nan",
}  # fmt: skip

_NO_SETTING = {
    "the launcher starts the processes: `torchrun --nproc-per-node N -m hrm_dist.train CONFIG.yaml ...`, or on "
    "a cluster `python -m launch.submit train CONFIG.yaml ... --nodes N --gpus-per-node N`":
    "num_gpus n_gpus n_gpu ngpu ngpus gpus gpu gpu_ids gpus_per_node devices num_devices nproc nprocs "
    "nproc_per_node num_processes num_proc world_size num_nodes n_nodes nnodes nodes local_rank rank "
    "tasks_per_node ntasks_per_node",
    "`python -m launch.submit` takes it, as --time-min": "time time_min time_limit walltime",
    "`python -m launch.submit` takes it, as --mem-gb": "mem mem_gb memory",
    "`python -m launch.submit` takes it as an option; its --help lists them": "partition account qos cpus_per_task "
    "constraint cluster grace_s container",
    "nothing is clipped, since a step of AdamATan2 is bounded; leave it out": "gradient_clip gradient_clip_val "
    "gradient_clipping grad_clip clip_grad clip_grad_norm grad_clip_norm clip max_grad_norm max_norm "
    "grad_norm_clip",
    "AdamATan2 trains the weights, and sign-SGD the puzzle table; leave it out": "optimizer optim optimizer_name",
    "AdamATan2 has no epsilon; leave it out": "eps epsilon adam_eps adam_epsilon",
    "the learning rate goes up over lr_warmup_steps and down to lr_min_ratio along a cosine; leave it out": "scheduler "
    "lr_scheduler lr_schedule lr_scheduler_type lr_decay schedule",
    "batches are read ahead without workers; leave it out": "num_workers workers n_workers dataloader_num_workers "
    "num_data_workers pin_memory prefetch prefetch_factor",
    "the dataset says it; leave it out": "seq_len max_seq_len seq_length sequence_length max_length context_length "
    "block_size vocab_size num_classes num_puzzle_identifiers",
    "these networks have none; leave it out": "dropout dropout_rate attn_dropout attention_dropout resid_dropout "
    "hidden_dropout label_smoothing",
    "a run goes to its end, and checkpoints/best keeps the best; leave it out": "patience early_stopping "
    "early_stop early_stopping_patience",
    "data_path and the `dataset:` section say it; python -m data_pipeline.build --help has the choices": "train_file "
    "val_file test_file train_split val_split split data_files val_data test_data",
}  # fmt: skip

HINTS: dict[str, str] = {
    **{name: f"here that is {ours}" for ours, names in _NAMES_ELSEWHERE.items() for name in names.split()},
    **{name: f"no setting here: {why}" for why, names in _NO_SETTING.items() for name in names.split()},
}


def hint(key: str, known: Collection[str], hints: Mapping[str, str] = HINTS) -> str | None:
    """Return how a key that is not `known` is to be written, or why it has no place; None if it is like no other."""
    section, _, name = key.lower().replace("-", "_").strip("_").rpartition(".")
    ordered = sorted(known, reverse=True)
    siblings = {leaf.lower(): k for k in ordered for head, _, leaf in [k.rpartition(".")] if head == section}
    cousins = {k.rpartition(".")[2].lower(): k for k in ordered}
    if name in siblings:
        return f"did you mean '{siblings[name]}'?"
    if name in hints:
        return hints[name]
    if name in cousins:
        return f"did you mean '{cousins[name]}'?"
    for keys in (siblings, cousins):
        if nearest := difflib.get_close_matches(name, keys, n=1, cutoff=_ALIKE):
            return f"did you mean '{keys[nearest[0]]}'?"
    return None


def unknown_key(key: str, valid: Collection[str], aliases: Collection[str], hints: Mapping[str, str]) -> str:
    """Return what to say of a key that is neither valid nor an alias."""
    why = hint(key, {*valid, *aliases}, hints)
    if why is not None:
        return f"unknown key '{key}'; {why}"
    section = key.rpartition(".")[0]
    of_section = sorted(k for k in valid if k.rpartition(".")[0] == section)
    return f"unknown key '{key}'; valid keys are {', '.join(of_section or sorted(valid))}"


_FILE_OPTIONS = {"c", "f", "cfg", "conf", "config", "config_file", "config_name", "config_path", "yaml"}


def other_notation(words: Sequence[str], known: Collection[str], command: str) -> str | None:
    """Return how to write what a command line does not say as `FILE.yaml key=value ...`; None if all of it does."""
    for i, word in enumerate(words):
        following = next((w for w in words[i + 1 : i + 3] if w not in ("=", ":")), "")
        head, equals, value = word.partition("=")
        is_option = word.startswith("-")
        if not equals:
            head, _, value = word.partition(":")
        key = head.lstrip("-").replace("-", "_") if is_option else head.strip()
        if is_option and key in _FILE_OPTIONS:
            return f"{word}: the file is given as it is; write {command} FILE.yaml key=value ..."
        if i == 0 and not is_option:
            if equals and not word.endswith((".yaml", ".yml")):
                return f"{word}: the configuration file comes first; write {command} FILE.yaml {word}"
            continue
        if not equals and word.endswith((".yaml", ".yml")):
            return f"{word}: a run has one configuration file, and {words[0]} is before it; leave one out"
        if equals and not is_option and (value or not following or "=" in following):
            continue  # key=value, or key= for nothing
        if key in known:
            return f"{word}: settings are written key=value; write {key}={value or following or 'VALUE'}"
        if is_option and (why := hint(key, known)):
            return f"{word}: settings are written key=value, without dashes; {why}"
    return None
