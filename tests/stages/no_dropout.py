"""The program without the denoisers' dropout, whose masks every rank draws for itself.

python tests/stages/no_dropout.py stage=nlu key=value ...
"""

from del_lightning.__main__ import main
from del_lightning.modules import denoiser

if __name__ == "__main__":
    denoiser.DROPOUT = 0.0
    main()
