"""The ingest job on any Beam runner.

    python beam_runner.py SOURCE... --into STORE --runner FlinkRunner --flink_master=HOST:PORT

Takes the arguments of `penstock ingest`; whatever it does not know goes to Beam, as `--name=value`.
"""

from __future__ import annotations

import sys

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ingest", "--engine", "beam", *sys.argv[1:]]))
