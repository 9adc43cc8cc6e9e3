"""DeepSpeed's functions that read its checkpoints: not offered yet, by name."""

from .. import refusal

_ADVICE = "checkpoints are not read yet: a running engine has fp32_state_dict()"

__getattr__ = refusal.of_names(
    "sluice.utils.zero_to_fp32",
    dict.fromkeys(
        (
            "convert_zero_checkpoint_to_fp32_state_dict",
            "get_fp32_state_dict_from_zero_checkpoint",
            "get_model_state_file",
            "get_optim_files",
            "load_state_dict_from_zero_checkpoint",
        ),
        _ADVICE,
    ),
)
