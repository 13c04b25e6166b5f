"""`python -m glmserve.engine.main`: the engine process with a real model.  Started by the front end, not by hand."""

from __future__ import annotations

import sys

from glmserve.engine.core import EngineCore
from glmserve.engine.process import EngineArguments, run_engine

if __name__ == "__main__":
    arguments = EngineArguments.parse(sys.argv[1:])
    sys.exit(run_engine(lambda report_loading: EngineCore(arguments.config, report_loading), arguments))
