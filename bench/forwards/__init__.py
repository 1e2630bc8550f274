"""What exact symmetry from a few forwards costs in accuracy, on real backbones."""
