"""Every operator and wrapper in every way that PyTorch calls, records, compiles and exports a model; see ``__main__``."""
