"""DeepSpeed's functions that make fp32 weights of a checkpoint, over those of Sluice's. No GPU and no model is needed, and no
pickle is read.

    python -m sluice.deepspeed -m deepspeed.utils.zero_to_fp32 checkpoints/ weights/ --safe_serialization
"""

import argparse

import torch

from ...checkpoints import masters, tensor_files
from ...settings.checking import parse_bytes
from .. import refusal


def get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag=None, exclude_frozen_parameters=False):
    """What a plain model loads: the fp32 masters under all their names, in RAM, and its persistent buffers. Errors: ValueError
    if there is no checkpoint."""
    model = masters.SavedModel(checkpoint_dir, tag)
    found = dict(model.tensors(exclude_frozen_parameters))
    for name, others in model.aliases().items():
        if name in found:
            found.update(dict.fromkeys(others, found[name]))
    return found


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir, output_dir, max_shard_size="5GB", safe_serialization=False, tag=None, exclude_frozen_parameters=False
):
    """Writes them into output_dir, shard by shard: model.safetensors, or pytorch_model.bin by torch.save(), or with an index
    several, as Transformers loads them; files of an earlier export there are replaced, and removed where they have other names.
    Tied ones stand under one name. max_shard_size None: one file."""
    shard = parse_bytes(max_shard_size, "max_shard_size") if max_shard_size is not None else 1 << 62
    stem, suffix, write = "pytorch_model", "bin", lambda path, tensors: torch.save(tensors, path)
    if safe_serialization:
        stem, suffix, write = "model", "safetensors", tensor_files.write
    model = masters.SavedModel(checkpoint_dir, tag)
    masters.write_shards(model, output_dir, shard, write, stem, suffix, exclude_frozen_parameters)


def load_state_dict_from_zero_checkpoint(model, checkpoint_dir, tag=None):
    """The model on the CPU, with the fp32 masters. Parameters that the checkpoint lacks stay as they are."""
    model = model.cpu()
    model.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag), strict=False)
    return model


_ADVICE = "a checkpoint here has no such file: load_checkpoint() and the functions beside this one read it"
__getattr__ = refusal.of_names("sluice.utils.zero_to_fp32", dict.fromkeys(("get_model_state_file", "get_optim_files"), _ADVICE))


def main():
    parser = argparse.ArgumentParser(description="fp32 weights of a checkpoint of Sluice's")
    parser.add_argument("checkpoint_dir")
    parser.add_argument("output_dir")
    parser.add_argument("--max_shard_size", default="5GB")
    parser.add_argument("--safe_serialization", action="store_true", help="safetensors instead of torch.save()")
    parser.add_argument("-t", "--tag", help="default: what `latest` names")
    parser.add_argument("--exclude_frozen_parameters", action="store_true")
    convert_zero_checkpoint_to_fp32_state_dict(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
