"""The papers' cost table: eager code as the papers have it, and equikern's wrappers: ``python bench/papers/cost``."""
