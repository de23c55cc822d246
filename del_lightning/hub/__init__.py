"""Publishing a trained front-end: a folder that anybody can check and load, its model card, and the way to the hub."""

from del_lightning.hub.record import SplitRecord, read_folder, write_folder
from del_lightning.hub.transfer import fetch, push

__all__ = ["SplitRecord", "fetch", "push", "read_folder", "write_folder"]
