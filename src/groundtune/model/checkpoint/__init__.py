"""Models on disk and on the Hub, in our own form and those of transformers, IDEA and MMDetection.

A weight of another project passes four files: `files` reads it, `names` has the tables that rename
it, `convert` applies them (and cuts packed tensors), `load` checks its shape and puts it into a
network. `save` and `convert` go the way back. `hf` reads and writes transformers' configuration,
`adapter` LoRA's folders; `hub` downloads and uploads.
"""
