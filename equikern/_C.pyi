"""The native module; pointers are addresses, ``codes`` one byte a view, ``keep`` the lead dims of weights or index."""

def orbit(
    x: int,
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    out: int,
    out_strides: tuple[int, ...],
    codes: bytes,
    spatial: int,
    dtype: int,
    scale: float,
    weights: int,
    index: int,
    keep: int,
    threads: int,
) -> None: ...
def reduce(
    y: int,
    shape: tuple[int, ...],
    y_strides: tuple[int, ...],
    out: int,
    out_strides: tuple[int, ...],
    out2: int,
    out2_strides: tuple[int, ...],
    codes: bytes,
    spatial: int,
    dtype: int,
    op: int,
    scale: float,
    weights: int,
    keep: int,
    threads: int,
) -> None: ...
def orbit_dot(
    x: int,
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    y: int,
    y_strides: tuple[int, ...],
    out: int,
    out_strides: tuple[int, ...],
    dots: int,
    codes: bytes,
    spatial: int,
    dtype: int,
    weights: int,
    keep: int,
    threads: int,
) -> None: ...
def select(
    y: int,
    shape: tuple[int, ...],
    y_strides: tuple[int, ...],
    out: int,
    out_strides: tuple[int, ...],
    index: int,
    codes: bytes,
    spatial: int,
    dtype: int,
    scores: int,
    scores_double: bool,
    minimum: bool,
    keep: int,
    threads: int,
) -> None: ...
def cpu_isa() -> str: ...
def cpu_features() -> list[str]: ...
def build_config() -> dict[str, str | int | bool | None]: ...
