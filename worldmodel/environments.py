"""Former home of `worldmodel.envs.paper`, kept because environment ids such as "worldmodel.environments:DoomTakeCover-v0" name it."""

from worldmodel.envs.paper import AreaResize, car_racing, doom_take_cover

__all__ = ["AreaResize", "car_racing", "doom_take_cover"]
