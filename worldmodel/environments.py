"""Former home of `worldmodel.envs.paper`, which environment ids such as "worldmodel.environments:DoomTakeCover-v0" name."""

from worldmodel.envs.paper import AreaResize, car_racing, doom_take_cover

__all__ = ["AreaResize", "car_racing", "doom_take_cover"]
