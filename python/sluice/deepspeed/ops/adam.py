"""DeepSpeed's CPU Adam under its name: sluice.AdamW with DeepSpeed's defaults.

Given to sluice.initialize() it only says what to do: the engine keeps the states. In a loop of its own it keeps them in
pinned RAM, or wherever the keyword arguments of sluice.AdamW say.
"""

from ...adamw import AdamW
from .. import refusal


class DeepSpeedCPUAdam(AdamW):
    """sluice.AdamW with the defaults of DeepSpeed's: no decay. tiers: more keyword arguments of sluice.AdamW."""

    def __init__(
        self,
        model_params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        adamw_mode=True,
        fp32_optimizer_states=True,
        **tiers,
    ):
        if not fp32_optimizer_states:
            raise ValueError("fp32_optimizer_states: states are fp32")
        super().__init__(
            model_params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            adamw_mode=adamw_mode,
            **tiers,
        )


__getattr__ = refusal.of_names("sluice.ops.adam", dict.fromkeys(("FusedAdam", "ZenFlowCPUAdam"), "use DeepSpeedCPUAdam"))
