"""Every operator and wrapper in every way that PyTorch calls, records and exports a model; see ``__main__``."""
