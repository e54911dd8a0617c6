"""Play in a dream: a page that runs a world in the browser, and a local server that adds what needs Python.

`export_page` writes a static page; ``worldmodel play`` serves one, with the real environment beside the dream.

Example:
    >>> from gymnasium.spaces import Discrete
    >>> from worldmodel.play import controls_of
    >>> [(button["key"], button["label"]) for button in controls_of(Discrete(2), "CartPole-v1")["buttons"]]
    [('ArrowLeft', 'left'), ('ArrowRight', 'right')]
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.play.catalog import Playable as Playable
    from worldmodel.play.catalog import included_worlds as included_worlds
    from worldmodel.play.catalog import local_runs as local_runs
    from worldmodel.play.catalog import open_run as open_run
    from worldmodel.play.catalog import parts_of_run as parts_of_run
    from worldmodel.play.controls import controls_of as controls_of
    from worldmodel.play.page import PageExport as PageExport
    from worldmodel.play.page import export_page as export_page
    from worldmodel.play.server import PlayServer as PlayServer
    from worldmodel.play.server import serve as serve
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "catalog": "Playable included_worlds local_runs open_run parts_of_run",
            "controls": "controls_of",
            "page": "PageExport export_page",
            "server": "PlayServer serve",
        },
    )
