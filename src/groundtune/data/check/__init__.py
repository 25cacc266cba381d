"""The checks behind `groundtune check`: what is wrong with a data set, said in words before it costs a night.

Everything that is looked for has a name and a line in `kinds`. What the readers met comes with the data set
(`Dataset.findings`); `names`, `splits` and `boxes` read only what is in memory, which is fast enough for every training
run; `pictures` and `twins` decode every file. `run` puts them together into a `Report`, which `text` makes readable.
"""
