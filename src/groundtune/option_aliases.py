"""Names of options that users type by habit, or that older versions had, and our name for each."""

RENAMED = {
    # run
    "model": "weights checkpoint ckpt pretrained pretrain_weights model_name model_name_or_path arch",
    "data": "dataset dataset_dir dataset_name data_dir data_path train_data train_data_dir coco_path",
    "output_dir": "output out save save_dir project name run_name work_dir logging_dir",
    "output": "output_dir out save save_dir save_path file path filename project name",
    "resume": "resume_from resume_from_checkpoint",
    "report_to": "track tracker tensorboard wandb mlflow logger log_with",
    "seed": "random_seed manual_seed data_seed",
    "extra_data": "mix",
    "retention_data": "retain",
    "Use {rehearsal} for another data set, {self_distillation} for the model's own detections.": "replay",
    "max_train_images": "limit_train fraction max_train_samples limit_train_batches",
    "max_valid_images": "limit_valid max_eval_samples max_val_samples limit_val_batches",
    "A run directory is never overwritten; choose another {output_dir}.": (
        "exist_ok overwrite overwrite_output_dir"
    ),
    # training
    "lr": "learning_rate lr0 base_lr",
    "weight_decay": "wd",
    "epochs": "num_train_epochs num_epochs max_epochs",
    "There is no early stopping; choose {epochs}. The best epoch's weights are kept.": (
        "patience early_stopping early_stopping_patience early_stopping_min_delta"
    ),
    "The length of training is {epochs}, but at least {min_steps}.": "max_steps max_train_steps time",
    "{batch_size} counts the images of one step on all devices.": "per_device_train_batch_size nbs",
    "batch_size": "batch bs train_batch_size eval_batch_size per_device_eval_batch_size",
    "micro_batch_size": "micro_batch auto_find_batch_size",
    "Gradients accumulate if {micro_batch_size} is smaller than {batch_size}.": (
        "grad_accum_steps gradient_accumulation_steps accumulate"
    ),
    "max_grad_norm": "clip_grad clip_grad_norm clip_max_norm gradient_clipping gradient_clip_val",
    "ema_decay": "ema use_ema ema_tau",
    "gradient_checkpointing": "recompute activation_checkpointing use_checkpoint",
    "The schedule is a linear warm-up and one drop; see {lr_drop_at} and {lr_drop_factor}.": (
        "cos_lr lr_scheduler lr_scheduler_type lr_scheduler_kwargs lr_drop lrf scheduler"
    ),
    "The warm-up is counted in steps; see {warmup_steps}.": "warmup_epochs warmup_ratio",
    "The optimizer is AdamW; see {lr} and {weight_decay}.": (
        "optim optimizer momentum adam_beta1 adam_beta2 adam_epsilon"
    ),
    "tune": "adapt lora use_lora peft",
    "See {tune}, or param_groups in a YAML file, where lr_mult 0 freezes a module.": (
        "freeze freeze_backbone lr_backbone lr_encoder lr_vit_layer_decay lr_component_decay"
    ),
    "lora_rank": "lora_r rank",
    "keep_base": "keep",
    "alphas": "at",
    "save_steps": "save_every save_period save_strategy checkpoint_interval checkpointing_steps",
    "eval_epochs": "eval_every eval_steps eval_strategy evaluation_strategy eval_interval",
    "log_steps": "log_every logging_steps logging_strategy log_interval print_freq",
    "loss_cls": "cls cls_loss_coef",
    "loss_bbox": "box bbox_loss_coef",
    "loss_giou": "giou_loss_coef",
    # images
    "short_side": "imgsz img img_size image_size resolution",
    "image_size": "imgsz img_size size",
    "flip": "fliplr hflip horizontal_flip",
    "The augmentations are {flip}, {multi_scale} and {crop}.": (
        "augment auto_augment close_mosaic copy_paste degrees erasing flipud hsv_h hsv_s hsv_v mixup "
        "mosaic perspective scale shear translate"
    ),
    "cache_features": "cache",
    "max_unreadable_share": "max_bad_pictures",
    "train_images": "train",
    "valid_images": "valid val",
    # classes
    "classes": "names class_names text texts text_prompt text_labels labels",
    "The classes come from the data set {data}; {rename} changes how the model reads them.": (
        "nc num_classes single_cls class_names names"
    ),
    # machine
    "device": "cpu use_cpu no_cuda gpu gpu_ids",
    "devices": "gpus num_gpus num_processes nproc_per_node multi_gpu",
    "Several devices share the images of a step; see {devices}.": "fsdp deepspeed use_fsdp use_deepspeed",
    "precision": "amp bf16 fp16 half int8 mixed_precision tf32",
    "compile": "torch_compile dynamo_backend",
    "workers": "num_workers dataloader_num_workers",
    "threads": "num_threads num_cpu_threads_per_process",
    "max_nonfinite_steps": "max_bad_steps",
    # predict, label, export
    "images": "source input inputs image image_path",
    "phrase": "caption sentence expression",
    "threshold": "conf confidence box_threshold score_threshold score_thr min_score",
    "nms": "iou iou_threshold nms_threshold",
    "tiles": "slice slice_size tile tile_size",
    "frame_stride": "every vid_stride",
    "save_as": "save_txt save_json save_crop save_conf",
    "fixed_classes": "closed",
    "A graph takes any number of images of any one size; {opset} is its only setting.": (
        "batch batch_size dynamic dynamic_batch imgsz simplify"
    ),
    "max_ap_drop": "allow_loss",
    "push_to_hub": "hub_model_id repo_id",
    "private": "hub_private_repo",
}
"""Our options, and other names for them: removed ones, and those of Ultralytics, transformers,
RF-DETR, DETR and accelerate. A key with braces is a sentence, where no single option fits."""
