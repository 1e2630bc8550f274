"""What a wrapper costs beside its backbone's forward, on EfficientNet-lite0: ``python bench/papers/pipeline``."""
