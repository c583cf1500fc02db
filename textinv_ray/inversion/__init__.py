"""The science: textual inversion (Gal et al. 2022) of many concepts side by side, without any cluster.

Read in this order: `backbone` (the frozen model), `words` (pseudo-words), `task` (one concept's
optimisation), `pack` (many in one step), `sampling`, `scoring`, `review`.
"""
