"""``portable``: exported programs that need no equikern."""

from __future__ import annotations

import torch

from .core.decompositions import decompositions

__all__ = ["portable"]


def portable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program in torch's own operators alone.

    What is saved of it is loaded where equikern is not installed, and ``torch.onnx.export`` takes it. It gives what the
    program gave: bit for bit where views are only moved or chosen, to rounding where they are added up. It is slower,
    since every view passes through memory. It is for inference: a gradient through a choice of views is that of the
    chosen one, whatever ``gradient=`` said. Token ids and targets outside of their range are refused by torch's own
    indexing.

    Args:
        program: what ``torch.export.export`` gives for a module that calls equikern's operators or wrappers, with any
            dynamic shapes. It stays as it is.

    Returns:
        The program without ``torch.ops.equikern``.

    Raises:
        TypeError: not an exported program.
        ValueError: one that writes into memory that a call was given as ``out=``.

    Example:
        >>> import torch
        >>> from equikern import EquiTune
        >>> model = EquiTune(torch.nn.Conv2d(3, 4, 3, padding=1), "c4", "c4")
        >>> x = torch.randn(2, 3, 8, 8)
        >>> program = portable(torch.export.export(model, (x,)))
        >>> any("equikern" in str(node.target) for node in program.graph.nodes)
        False
        >>> torch.allclose(program.module()(x), model(x), atol=1e-6)
        True
    """
    if not isinstance(program, torch.export.ExportedProgram):
        raise TypeError(f"program: expected what torch.export.export(model, …) gives, got {type(program).__name__}")
    names = {str(node.target) for node in _nodes(program)}
    writes = {name for name in names if name.startswith("equikern.") and name.endswith("_out.default")}
    if writes:
        raise ValueError(f"program: expected none that writes into out=, got one with {', '.join(sorted(writes))}")
    made: torch.export.ExportedProgram = program.run_decompositions(dict(decompositions))
    return made


def _nodes(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Those of the program and of what it branches into."""
    graphs = (part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
    return [node for graph in graphs for node in graph.graph.nodes]
