"""DeepSpeed's JSON: what is honoured, what is noted, what is refused, and what the messages say."""

import base64
import dataclasses
import json
import pathlib
import types

import pytest
import torch
from sluice.config import ConfigError, load_config, parse_bytes
from sluice.deepspeed import config_table
from sluice.deepspeed.config_keys import ALIASES, KEYS
from sluice.settings.keys import NO_EFFECT, REFUSED, USED, Key

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "config.md"


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


def all_keys(keys=KEYS, path=()):
    for name, key in keys.items():
        if isinstance(key, Key):
            yield (*path, name), key
        else:
            yield from all_keys(key, (*path, name))


def of_kind(kind):
    return [pytest.param(path, key, id=".".join(path)) for path, key in all_keys() if key.kind == kind]


# Every key of the reference on DeepSpeed 0.19.6, by section; `stage3_` names are given as they are written most.
DEEPSPEED = {
    "": "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation "
    "gradient_clipping prescale_gradients gradient_predivide_factor gradient_allreduce_op sparse_gradients "
    "steps_per_print wall_clock_breakdown memory_breakdown dump_state zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer disable_allgather dataloader_drop_last optimizer scheduler checkpoint "
    "activation_checkpointing communication_data_type torch_autocast amp fp16 bf16 bfloat16 data_types aio "
    "zero_optimization",
    "zero_optimization": "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce "
    "allgather_partitions allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint offload_param "
    "offload_optimizer zenflow sub_group_size cpu_offload cpu_offload_param cpu_offload_use_pin_memory "
    "stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save "
    "stage3_gather_fp16_weights_on_model_save stage3_module_granularity_threshold "
    "stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential ignore_unused_parameters legacy_stage1 "
    "round_robin_gradients zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights "
    "zero_quantized_gradients zeropp_loco_param mics_shard_size mics_hierarchical_params_gather "
    "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
    "enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module prefetch_bucket_size max_live_parameters "
    "param_persistence_threshold model_persistence_threshold max_reuse_distance",
    "zero_optimization.offload_param": "device nvme_path buffer_count buffer_size max_in_cpu pin_memory",
    "zero_optimization.offload_optimizer": "device nvme_path buffer_count pin_memory pipeline_read pipeline_write "
    "fast_init ratio super_offload cpuadam_cores_perc",
    "zero_optimization.leaf_module": "classes names name_suffixes",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds thread_count num_threads",
    "fp16": "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
    "min_loss_scale fp16_master_weights_and_grads",
    "bf16": "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype",
    "optimizer": "type params legacy_fusion",
    "optimizer.params": "lr betas eps weight_decay bias_correction adam_w_mode torch_adam amsgrad max_grad_norm "
    "fp32_optimizer_states",
    "scheduler": "type params",
    "checkpoint": "tag_validation load_universal use_node_local_storage parallel_write checkpoint_serialization writer",
    "activation_checkpointing": "partition_activations contiguous_memory_optimization cpu_checkpointing "
    "number_checkpoints synchronize_checkpoint_boundary profile",
}


@pytest.mark.parametrize("section", DEEPSPEED)
def test_every_key_of_deepspeed_is_known(section):
    keys = KEYS
    for name in filter(None, section.split(".")):
        keys = keys[name]
    unknown = [k for k in DEEPSPEED[section].split() if ALIASES.get(section, {}).get(k, k) not in keys]
    assert unknown == []


def test_the_table_in_the_docs_is_the_one_of_the_code():
    text = DOCS.read_text()
    assert config_table.renewed(text) == text, "run: python -m sluice.deepspeed.config_table docs/config.md"
    for path, key in all_keys():
        assert f"`{path[-1]}`" in text and key.words in text


@pytest.mark.parametrize("path, key", of_kind(NO_EFFECT))
def test_a_key_without_effect_is_noted_with_its_reason(path, key):
    assert load_config(nested(path, True)).notes == (f"{'.'.join(path)}: {key.words}",)


@pytest.mark.parametrize("path, key", of_kind(REFUSED))
def test_a_key_that_is_not_offered_is_refused_unless_it_is_off(path, key):
    with pytest.raises(ConfigError) as error:
        load_config(nested(path, {"enabled": True} if key.off_section else "x"))
    assert str(error.value) == f"{'.'.join(path)}: {key.words}"
    for off in (*key.off, *([{"enabled": False}, {}] if key.off_section else [])):
        assert load_config(nested(path, off)).notes == ()


@pytest.mark.parametrize("path, key", of_kind(USED))
def test_auto_is_the_default_and_noted(path, key):
    auto = load_config(nested(path, "auto"))
    plain = load_config(nested(path[:-1], {}) if path[:-1] else {})
    assert auto.notes[0].startswith(f"{'.'.join(path)}: auto is the default")
    assert dataclasses.replace(auto, notes=()) == dataclasses.replace(plain, notes=())


class Model(torch.nn.Module):
    """With a configuration as Transformers' models have."""

    def __init__(self, **config):
        super().__init__()
        self.config = types.SimpleNamespace(**config)


@pytest.mark.parametrize("key", ["stage3_param_persistence_threshold", "param_persistence_threshold"])
def test_auto_follows_the_model_as_hugging_face_fills_it_in(key):
    asked = {"zero_optimization": {"stage": 3, key: "auto"}}
    text = types.SimpleNamespace(hidden_size=48)
    for model, wanted in ((Model(hidden_size=32), 320), (Model(hidden_sizes=[8, 64, 16]), 640), (Model(text_config=text), 480)):
        read = load_config(asked, model=model)
        assert read.persistence_threshold == wanted and asked["zero_optimization"][key] == "auto" == read.get("zero_optimization")[key]
        assert read.notes == (f"zero_optimization.{key}: auto is {wanted}, 10 times the model's hidden size",)
    for model, stage in ((None, 3), (torch.nn.Linear(2, 2), 3), (Model(hidden_size="many"), 3), (Model(hidden_size=32), 2)):
        read = load_config({"zero_optimization": {"stage": stage, key: "auto"}}, model=model)
        assert read.persistence_threshold is None and read.notes == (f"zero_optimization.{key}: auto is the default",)


def test_auto_of_a_schedule_follows_the_optimizer():
    params = {"total_num_steps": 10, "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
    read = load_config(
        {
            "optimizer": {"type": "AdamW", "params": {"lr": 0.25}},
            "scheduler": {"type": "WarmupDecayLR", "params": params},
        }
    )
    assert read.scheduler[1] == {"total_num_steps": 10, "warmup_min_lr": 0, "warmup_max_lr": 0.25}
    notes = "warmup_min_lr: auto is 0", "warmup_max_lr: auto is 0.25, the optimizer's lr", "warmup_num_steps: auto is the default"
    assert read.notes == tuple(f"scheduler.params.{note}" for note in notes)
    alone = load_config({"scheduler": {"type": "WarmupDecayLR", "params": params}})
    assert "warmup_max_lr" not in alone.scheduler[1]


def test_a_schedule_without_an_optimizer_is_not_looked_at_where_nobody_gives_one():
    asked = {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 0}}}
    with pytest.raises(ConfigError, match="total_num_steps"):
        load_config(asked)
    read = load_config(asked, scheduled=False)
    assert read.scheduler is None and read.notes == ("scheduler: no effect, as there is no optimizer",)
    with pytest.raises(ConfigError, match="total_num_steps"):
        load_config(asked | {"optimizer": {"type": "AdamW"}}, scheduled=False)


def test_the_configuration_is_there_as_it_was_given():
    read = load_config({"steps_per_print": 7, "zero_optimization": {"stage": 2}})
    assert read.get("zero_optimization", {})["stage"] == read["zero_optimization"]["stage"] == 2
    assert "steps_per_print" in read and read.get("optimizer", 5) == 5


WRONG = {
    "bool": "yes",
    "text": 5,
    "section": 5,
    "number": -1,
    "count": 0.5,
    "positive": 0,
    "size": "5 XB",
    "betas": [0.9],
}


@pytest.mark.parametrize("path, key", of_kind(USED))
def test_a_value_of_the_wrong_type_is_refused_by_name(path, key):
    wrong = "sideways" if isinstance(key.type, tuple) else {**WRONG, "path": 5, "paths": 5}[key.type]
    with pytest.raises(ConfigError, match=".".join(path) + ": .*" + str(wrong).replace("[", r"\[")):
        load_config(nested(path, wrong))


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="zero_optimization.offload_param.devise: unknown key; did you mean 'device'"):
        load_config({"zero_optimization": {"offload_param": {"devise": "cpu"}}})
    with pytest.raises(ConfigError, match="qqqq: unknown key; known here are .*aio.*train_batch_size"):
        load_config({"qqqq": 1})


def test_both_names_of_a_key_work_and_exclude_each_other():
    for name in ("param_persistence_threshold", "stage3_param_persistence_threshold"):
        assert load_config({"zero_optimization": {name: 1e5}}).persistence_threshold == 100000
    with pytest.raises(ConfigError, match="under two names"):
        load_config({"bf16": {"enabled": True}, "bfloat16": {"enabled": True}})
    with pytest.raises(ConfigError, match="stage3_stage: unknown"):
        load_config({"zero_optimization": {"stage3_stage": 1}})


@pytest.mark.parametrize(
    "given, micro, steps",
    [
        ({}, 1, 1),
        ({"gradient_accumulation_steps": 3}, 1, 3),
        ({"train_batch_size": 8}, 8, 1),
        ({"train_micro_batch_size_per_gpu": 8}, 8, 1),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, 2, 4),
        ({"train_batch_size": 8, "gradient_accumulation_steps": 2}, 4, 2),
        ({"train_batch_size": 8.0, "gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 4}, 4, 2),
    ],
)
def test_two_of_the_batch_sizes_give_the_third(given, micro, steps):
    config = load_config(given)
    assert (config.micro_batch, config.accumulation) == (micro, steps)


@pytest.mark.parametrize(
    "given",
    [
        {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 3},
        {"train_batch_size": 8, "gradient_accumulation_steps": 3},
        {"train_batch_size": 8, "gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 2},
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(given):
    with pytest.raises(ConfigError, match="train_batch_size 8 is not"):
        load_config(given)


def test_clipping_is_on_by_default_as_in_deepspeed():
    assert load_config({}).clip_norm == 1.0
    assert load_config({"gradient_clipping": 0}).clip_norm == 0.0


def optimizer(kind, **params):
    return load_config({"optimizer": {"type": kind, "params": params}}).optimizer


def test_adam_means_adamw_unless_told_otherwise():
    assert optimizer("Adam") == optimizer("AdamW") == optimizer("adam", lr="auto")
    assert not optimizer("Adam")["l2_decay"] and optimizer("Adam", adam_w_mode=False)["l2_decay"]
    assert not optimizer("AdamW", adam_w_mode=False)["l2_decay"]


def test_weight_decay_defaults_to_0_but_with_torch_adam():
    assert optimizer("AdamW")["weight_decay"] == 0.0
    assert optimizer("AdamW", torch_adam=True)["weight_decay"] == 0.01
    assert optimizer("Adam", torch_adam=True, adam_w_mode=False)["weight_decay"] == 0.0
    assert optimizer("AdamW", torch_adam=True, weight_decay=0.5)["weight_decay"] == 0.5


@pytest.mark.parametrize(
    "kind, words", [("OneBitAdam", "1-bit Adam"), ("Lion", "Lion"), ("Muon", "Muon"), ("SGD", "'SGD'")]
)
def test_other_optimizers_are_refused_by_name(kind, words):
    with pytest.raises(ConfigError, match=f"optimizer.type: {words} is not offered; use AdamW"):
        optimizer(kind)


def test_a_scheduler_is_checked_when_the_configuration_is_read():
    good = {"type": "WarmupDecayLR", "params": {"total_num_steps": 10, "warmup_num_steps": "auto"}}
    config = load_config({"scheduler": good})
    assert config.scheduler == ("WarmupDecayLR", {"total_num_steps": 10})
    assert config.notes == ("scheduler.params.warmup_num_steps: auto is the default",)
    for section, words in [
        (
            {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
            "scheduler.params.total_num_steps: .*needs it",
        ),
        ({"type": "WarmupLR", "params": {"warmup_max": 1}}, "params.warmup_max: .*did you mean 'warmup_max_lr'"),
        ({"type": "WarmUpLR"}, "scheduler.type: 'WarmUpLR' is neither .*did you mean WarmupLR"),
        ({"params": {}}, "scheduler.type: is missing"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_config({"scheduler": section})
    assert load_config({"scheduler": {"type": "StepLR", "params": {"step_size": 2}}}).scheduler[0] == "StepLR"


def test_precision():
    assert load_config({}).dtype == "fp32"
    assert load_config({"bfloat16": {"enabled": True}}).dtype == "bf16"
    assert load_config({"fp16": {"enabled": False, "loss_scale": 128}}).loss_scale == {}
    assert load_config({"fp16": {"enabled": True, "loss_scale": 128}}).loss_scale == {"loss_scale": 128.0}
    with pytest.raises(ConfigError, match="exclude each other"):
        load_config({"fp16": {"enabled": True}, "bf16": {"enabled": True}})
    with pytest.raises(ConfigError, match="min_loss_scale: must be above 0"):
        load_config({"fp16": {"enabled": True, "min_loss_scale": 0}})
    for bad in (True, float("nan"), float("inf"), -1):
        with pytest.raises(ConfigError, match="fp16.loss_scale"):
            load_config({"fp16": {"enabled": True, "loss_scale": bad}})


def test_offload_and_its_paths():
    nvme = {"device": "nvme", "nvme_path": "/a"}
    zero = {"stage": 3, "offload_param": nvme, "offload_optimizer": {"device": "nvme", "nvme_path": "/b"}}
    assert load_config({"zero_optimization": zero}).nvme_paths == ("/b", "/a")
    assert load_config({"zero_optimization": zero, "sluice": {"nvme_path": ["/c", "/d"]}}).nvme_paths == ("/c", "/d")
    with pytest.raises(ConfigError, match='offload_optimizer.device: "nvme" needs nvme_path'):
        load_config({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}})
    with pytest.raises(ConfigError, match="zero_optimization.stage: must be one of 0, 1, 2, 3, not 4"):
        load_config({"zero_optimization": {"stage": 4}})
    assert load_config({"zero_optimization": True}).zero_stage == 1
    assert load_config({"zero_optimization": {"offload_param": None}}).offload_param == "none"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_parameters_that_ranks_keep_whole_stay_in_ram_and_that_is_noted(stage, world):
    given = {"zero_optimization": {"stage": stage, "offload_param": {"device": "nvme", "nvme_path": "/tmp"}}}
    noted = [note for note in load_config(given, world).notes if note.startswith("zero_optimization.offload_param.device: ")]
    assert len(noted) == (1 if world > 1 and stage < 3 else 0)


def test_a_configuration_comes_as_dict_file_path_or_base64(tmp_path):
    given = {"train_batch_size": 6}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    encoded = base64.urlsafe_b64encode(json.dumps(given).encode()).decode()
    for form in (given, path, str(path), encoded):
        assert load_config(form).micro_batch == 6


def test_files_that_can_not_be_used_say_why(tmp_path):
    path = tmp_path / "ds.json"
    with pytest.raises(ConfigError, match="ds.json does not exist"):
        load_config(path)
    path.write_text('{"aio": {}, "aio": {}}')
    with pytest.raises(ConfigError, match="key 'aio' is given twice"):
        load_config(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        load_config(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="the config: must be an object"):
        load_config(path)
    with pytest.raises(ConfigError, match="not int"):
        load_config(5)
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)


def test_hjson_is_read(tmp_path):
    pytest.importorskip("hjson")
    path = tmp_path / "ds.hjson"
    path.write_text("{\n  # a comment\n  train_batch_size: 6\n  bf16: {enabled: true}\n}")
    config = load_config(path)
    assert (config.micro_batch, config.dtype) == (6, "bf16")


def test_hjson_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hjson", None)
    path = tmp_path / "ds.hjson"
    path.write_text("{\n  # a comment\n  train_batch_size: 6\n}")
    with pytest.raises(ConfigError, match="is not JSON: .*install the package hjson"):
        load_config(path)


@pytest.mark.parametrize(
    "text, value", [("512MiB", 512 << 20), ("1.5k", 1536), ("2GB", 2 * 10**9), (7, 7), (None, None)]
)
def test_sizes(text, value):
    assert parse_bytes(text) == value
