"""What a checkpoint holds beside the library's values, and how it is written without pickle."""
