"""Scripts over Lightning and Fabric. Their DeepSpeed strategies want CUDA, whatever DeepSpeed can do: that check is left out here."""
