"""Bridges to other libraries, one file per library, each behind an optional extra.

``sb3.py`` takes policies of Stable-Baselines3, ``torchrl.py`` makes dreams a TorchRL environment, ``minari.py`` reads and
writes Minari data sets, and ``hardmaru.py`` opens the trained CarRacing weights of the paper's authors. A bridge is imported by
its full name, such as ``worldmodel.adapters.sb3``, and nothing else imports it: the library works without any of them.

Example:
    >>> import pkgutil
    >>> from worldmodel import adapters
    >>> [module.name for module in pkgutil.iter_modules(adapters.__path__)]
    ['hardmaru', 'minari', 'sb3', 'torchrl']
"""
