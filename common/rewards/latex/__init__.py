"""Mathematics as text: LaTeX, plain and Unicode notation read exactly, and compared.

tokens → parser → shape, by `reader`; `equality` compares two shapes.
"""
