"""Gauss-Newton curvature of a network, one block for each pathway, extracted with BackPACK.

:mod:`.conventions` fixes the symbols and the scalings that all files here use.
"""
