"""Risk control: operating points with a statement that is proved, not hoped for.

Jazbec et al., "Fast yet Safe: Early-Exiting with Risk Control", NeurIPS 2024, arXiv 2405.20915.
"""
