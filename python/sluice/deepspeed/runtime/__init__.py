"""DeepSpeed's `runtime`. What programs import from below it is here, or another module of Sluice under that name (names.py)."""
