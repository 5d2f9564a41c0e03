"""What runs in the simulators' own environments; imports nothing of the project.

`make_*` write data as OGBench lays it out: flat arrays of one .npz, `terminals` in the last row of
each trajectory. `serve` plays a world to a learner in another process.
"""
