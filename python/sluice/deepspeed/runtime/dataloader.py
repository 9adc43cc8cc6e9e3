"""A loader that never ends, under DeepSpeed's name."""

from .. import refusal


class RepeatingLoader:
    """Gives what `loader` gives, and begins anew where that ends."""

    def __init__(self, loader):
        self.loader = loader
        self._items = iter(loader)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self._items)
        except StopIteration:
            self._items = iter(self.loader)
            return next(self._items)


__getattr__ = refusal.of_names(
    "sluice.deepspeed.runtime.dataloader",
    {"DeepSpeedDataLoader": "initialize(training_data=...) makes a torch.utils.data.DataLoader"},
)
