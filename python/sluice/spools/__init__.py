"""Values in unnamed files, of models that are being built or were handed back."""
