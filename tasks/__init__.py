"""The pipeline: stages are the verbs at the top, their parts the nouns, one folder each."""

import os

# numpy and scipy bring an OpenBLAS each, whose idle threads spin for a while: used in turns, they
# take the cores from one another, and a linear head needs four times as long. Let them sleep at
# once. The library reads this when it is loaded, so it stands before any import of numpy.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
