"""Targets and losses: focal loss, bipartite matching and the Grounding DINO criterion."""
