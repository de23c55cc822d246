"""The program as several ranks can be compared by it: no dropout, whose masks every rank draws for itself, and soft
prompts and adapters as they were trained, even where a training this small only loses.

python tests/stages/comparable.py stage=nlu key=value ...
"""

from del_lightning.__main__ import main
from del_lightning.modules import ClassifierTraining, denoiser

if __name__ == "__main__":
    denoiser.DROPOUT = 0.0
    ClassifierTraining.start_counts = False
    main()
