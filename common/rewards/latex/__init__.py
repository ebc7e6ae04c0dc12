"""Mathematics as text: LaTeX, plain and Unicode notation, read exactly and compared.

`tokens` splits a text, `reader` makes a `shape` of it (a value, several, a relation or text), and
`parser` the expressions within. `equality` compares two shapes, with the help of `units`.
`vocabulary` has the words and signs that all of them look up.
"""
