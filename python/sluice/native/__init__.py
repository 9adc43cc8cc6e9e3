"""The library through its C ABI, for any tensors: no module of PyTorch is known here."""
