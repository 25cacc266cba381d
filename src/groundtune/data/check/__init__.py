"""The checks of `groundtune check`: `kinds` lists them, `run` runs them and makes a `Report`.

`names` and `boxes` read annotations only, fast enough for every training run; `images` decodes
every file.
"""
