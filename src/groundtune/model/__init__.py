"""The network: Grounding DINO (Liu et al., 2023) implemented once, with switches for its family."""
