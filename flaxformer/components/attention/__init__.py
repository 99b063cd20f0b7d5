"""Attention, in five rooms: projections, positions, masks, cache and kernels."""
