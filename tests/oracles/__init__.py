"""What tests compare with, and the networks that they share: NumPy, dense matrices, one entry after the other.

`architectures`: one row for every architecture, and what holds for all of them. `dense`: Hessians of small networks.
`metrics`, `resets`, `projectors`: definitions from the papers, in NumPy. `normal_space`, `critical_clones`: the Hessian
of cloned networks. `reference`: values measured with other code. `folders`: a run folder.
"""
