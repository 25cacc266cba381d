"""The checks behind `groundtune check`: what is wrong with a data set, said in words before it costs a night.

All that is looked for has a name and a line in `kinds`. `names`, `splits`, `boxes` and `grounding` read only what is in
memory, fast enough for every training run; `images` and `twins` decode every file. `run` makes a `Report` of them.
"""
